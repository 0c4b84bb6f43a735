-- Limits, pauses, weights and all relays of a stream but its first are forgotten; mail stays.
drop function if exists pgmail.take_tokens_v1(bigint, text[], text[], integer[]);
drop function if exists pgmail.share_permits_v1(bigint, text[], text[], integer[], integer[]);
drop function if exists pgmail.set_limit(text, text, integer, real, integer, real, text);
drop function if exists pgmail.remove_limit(text, text);
drop function if exists pgmail.set_tenant(text, real);
drop function if exists pgmail.pause_mail(text, text, text, timestamptz, boolean);
drop function if exists pgmail.resume_mail(text, text, text, boolean);
drop function if exists pgmail.stopped_by(text, integer, text);
drop function if exists pgmail.pause_target(integer, text, text);
drop function if exists pgmail.pause_tenant(boolean);
drop function if exists pgmail.lane_name(text, integer, text);
drop function if exists pgmail.limit_gap(pgmail.limits, timestamptz, timestamptz);
drop function if exists pgmail.limit_name(text, text);
drop function if exists pgmail.rate_words(integer, real);
drop function if exists pgmail.site_name(text, text);
drop function if exists pgmail.register_relays_v1(text[]);
drop function if exists pgmail.read_relays(jsonb);

drop table pgmail.pause;
drop table pgmail.permit;
drop table pgmail.bucket;
drop table pgmail.limits;

alter table pgmail.relay drop column up_since;
alter table pgmail.stream drop column relay_weights, drop column relays;
alter table pgmail.tenant drop column weight;

update pgmail.schema_version set version = 1;
