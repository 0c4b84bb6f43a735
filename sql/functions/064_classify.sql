-- What replies of other mail servers mean: the rules of sql/rules/replies.toml, as pgmail/domain/replies.py evaluates
-- them too. A test runs both over one corpus. They are loaded anew by every `pgmail db upgrade`, so that what was
-- recorded can be looked at with the rules of today (pgmail.refusal).

-- A reply's text as patterns see it: small letters without accents, one space, addresses as @, and without the codes
-- that lead each line. The letters of the first string become those of the second.
create or replace function pgmail.fold_reply(p_text text) returns text
language sql immutable parallel safe set search_path = pgmail, pg_temp
as $$
  select btrim(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    translate(left(p_text, 2000),
      E'ABCDEFGHIJKLMNOPQRSTUVWXYZАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁё'
        || E'áàâäãåāăąçćčďđéèêëēėęěíìîïīğñńňóòôöõøōőŕřśšşșťţțúùûüūůűýÿžźżłœæ'
        || E'ßÁÀÂÄÃÅĂĄÇĆČĎĐÉÈÊËĖĘĚÍÌÎÏİĞÑŃŇÓÒÔÖÕØŐŔŘŚŠŞȘŤŢȚÚÙÛÜŮŰÝŽŹŻŁŒÆı'
        || E'’‘`´“”„«»"‐‑–—\t\r\n\f\u000b\u00a0',
      E'abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъыьэюяее'
        || E'aaaaaaaaacccddeeeeeeeeiiiiignnnoooooooorrsssstttuuuuuuuyyzzzloa'
        || E'saaaaaaaacccddeeeeeeeiiiiignnnooooooorrsssstttuuuuuuyzzzloai'
        || E'''''''''''''''''''''----      '),
    ' {2,}', ' ', 'g'),
    '[a-z0-9._%+=&*$!#/?{}|~^''-]+@[a-z0-9._-]+', '@', 'g'),
    '(^| )[245][0-9][0-9][ -]#?[245]\.[0-9]{1,3}\.[0-9]{1,3}( |$)|(^| )[45][0-9][0-9]-', ' ', 'g'),
    ' {2,}', ' ', 'g'), ' ')
$$;

-- The rules anew, from the table of this program's rules: {reasons: [...], rules: [...], patterns: [...]}. The owner's.
create or replace function pgmail.load_reply_rules(p_table jsonb) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  delete from pgmail.reply_pattern;
  delete from pgmail.reply_rule;
  delete from pgmail.reply_reason;
  insert into pgmail.reply_reason (name, class, blame, follows, suppress, slow, alert, means)
  select x.name, x.class, x.blame, x.follows, x.suppress, x.slow, x.alert, x.means
  from jsonb_to_recordset(p_table->'reasons') as x(name text, class text, blame text, follows text, suppress boolean,
    slow boolean, alert boolean, means text);
  insert into pgmail.reply_rule (position, name, reason, final, code, enhanced, phase, asks_text)
  select x.position, x.name, x.reason, x.final, x.code, x.enhanced, x.phase, x.asks_text
  from jsonb_to_recordset(p_table->'rules') as x(position integer, name text, reason text, final boolean, code text,
    enhanced text, phase text[], asks_text boolean);
  get diagnostics n = row_count;
  insert into pgmail.reply_pattern (rule, unless, pattern, needles)
  select x.rule, x.unless, x.pattern, x.needles
  from jsonb_to_recordset(p_table->'patterns') as x(rule integer, unless boolean, pattern text, needles text[]);
  return n;
end
$$;

-- What a reply means. All but the text may be null: code and enhanced code are then read from the text, p_phase is a word
-- of pgmail's phases (connect greeting ehlo starttls auth mail rcpt data body dot). One row, always. follows: code (4xx
-- waits, 5xx bounces), retry (waits even after a 5xx) or bounce.
create or replace function pgmail.classify(p_code integer, p_enhanced text, p_phase text, p_text text)
returns table (reason text, class text, blame text, suppress boolean, follows text, slow boolean, alert boolean, rule text)
language sql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
  with given as materialized (
    select coalesce(p_code::text, (regexp_match(p_text, '(^|[^0-9.])([245][0-9][0-9])([ -]|$)'))[2], '') as code,
      coalesce(nullif(btrim(p_enhanced, ' #'), ''),
        (regexp_match(p_text, '(^|[^0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})($|[^0-9.]|\.$|\.[^0-9])'))[2], '') as wide,
      coalesce(pgmail.fold_reply(p_text), '') as folded
  ), g as materialized (
    select folded, wide, code, code like '5%' and wide not like '4%' as final
    from (select folded, wide, case when code = '' and wide <> '' then left(wide, 1) || '00' else code end as code from given) x
  ), hit as materialized (
    -- A word that must be there is looked for first: running each pattern at each place takes many times as long.
    select p.rule, p.unless from pgmail.reply_pattern p cross join g
    where case when exists (select from unnest(p.needles) n where strpos(g.folded, n) > 0) then g.folded ~ p.pattern else false end
  )
  select y.name, y.class, y.blame, y.suppress, y.follows, y.slow, y.alert, r.name
  from g cross join pgmail.reply_rule r join pgmail.reply_reason y on y.name = r.reason
  where (r.final is null or r.final = g.final)
    and (r.code is null or g.code ~ ('^(' || r.code || ')$'))
    and (r.enhanced is null or g.wide ~ ('^(' || r.enhanced || ')$'))
    and (r.phase is null or p_phase = any (r.phase))
    and (not r.asks_text or exists (select from hit h where h.rule = r.position and not h.unless))
    and not exists (select from hit h where h.rule = r.position and h.unless)
  order by r.position limit 1
$$;

-- Refusals as they were recorded, with what they mean by the rules of today; `detail` begins with what was thought then.
create or replace view pgmail.refusal with (security_invoker = true) as
select e.tenant_id, e.recipient_id, e.message_id, e.at, e.type, e.attempt, e.site, e.relay, e.remote_host, e.code, e.enhanced,
  e.phase, e.reply, e.detail, c.reason, c.class, c.blame, c.suppress, c.rule
from pgmail.event e
cross join lateral pgmail.classify(e.code, e.enhanced, e.phase, e.reply) c
where e.code >= 400;
