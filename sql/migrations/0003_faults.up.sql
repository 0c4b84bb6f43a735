-- Faults: what may have been sent, what replies mean, who gets no mail, what a restored database does, what is kept.

------------------------------------------------------------------------------------------------ in doubt

------------------------------------------------------------------------------------------------ replies

------------------------------------------------------------------------------------------------ suppression
alter table pgmail.suppression drop constraint suppression_reason_check;
alter table pgmail.suppression add constraint suppression_reason_check
  check (reason in ('bounced', 'complained', 'unsubscribed', 'manual', 'invalid'));
create index suppression_expiry on pgmail.suppression (expires_at) where expires_at is not null;

------------------------------------------------------------------------------------------------ restore

------------------------------------------------------------------------------------------------ retention

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;
