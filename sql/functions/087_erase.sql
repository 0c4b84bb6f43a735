-- Erasure: a person's data goes, the accounting stays. The address becomes a token, which is the same for the same address
-- and tenant, so that counts by person and de-duplication stay; salted and hashed, so that it does not lead back.

create or replace function pgmail.erased_token(p_tenant integer, p_address text) returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select 'erased-' || left(encode(sha256(s.salt || sha256(s.salt || convert_to(p_address, 'UTF8'))), 'hex'), 32) || '@erased.invalid'
  from pgmail.erasure_salt s where s.tenant_id = p_tenant
$$;

-- What an address is called on the suppression list: itself, and its token where it was erased. Who opted out and was
-- erased stays opted out.
create or replace function pgmail.suppressed_as(p_tenant integer, p_address text) returns text[]
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$ begin return array_remove(array[p_address, pgmail.erased_token(p_tenant, p_address)], null); end $$;

-- A text, or the text of a JSON value, with the address replaced wherever it stands as a whole, in upper or lower case.
create or replace function pgmail.erased_text(p_text text, p_address text, p_token text) returns text
language sql immutable
as $$
  select regexp_replace(p_text,
    '(?<=^|[^A-Za-z0-9._%+-]|\\[nrtbf])' || regexp_replace(p_address, '([^[:alnum:]@_])', '\\\1', 'g') || '(?![A-Za-z0-9-]|\.[A-Za-z0-9])',
    p_token, 'gi')
$$;

-- A list of mailboxes with the person's own made anonymous.
create or replace function pgmail.erased_boxes(p_boxes jsonb, p_address text, p_token text) returns jsonb
language sql immutable
as $$
  select coalesce(jsonb_agg(case when pgmail.lower_text(x->>'address') = p_address then jsonb_build_object('address', p_token) else x end order by i), '[]')
  from jsonb_array_elements(p_boxes) with ordinality u(x, i)
$$;

-- A content with the person taken out, lists and texts; as it was where the person is not in it. Of what is sealed only the
-- lists stand open.
create or replace function pgmail.erased_content(p_content bytea, p_key_id integer, p_address text, p_token text) returns bytea
language plpgsql immutable
as $$
declare was jsonb; c jsonb; k text;
begin
  was := convert_from(p_content, 'UTF8')::jsonb; c := was;
  foreach k in array array['to', 'cc', 'reply_to'] loop
    if jsonb_typeof(c->k) = 'array' then c := jsonb_set(c, array[k], pgmail.erased_boxes(c->k, p_address, p_token)); end if;
  end loop;
  c := pgmail.erased_text(c::text, p_address, p_token)::jsonb;
  return case when c = was then p_content else convert_to(c::text, 'UTF8') end;
end
$$;

-- One batch: up to p_most emails of the person from the recipient id p_after on. What waits is cancelled, dead letters
-- are discarded; then address, name and variables go, the texts and files of emails to this person alone, and the
-- address in those that others got, in replies and in the record.
-- Answers {"person": token, "recipients", "messages", "cancelled", "discarded", "too_late", "waiting", "suppressions", "next"}.
--   too_late      being sent this moment    waiting   named in an email that others still wait for. Neither was erased: run again.
--   next          go on with this as p_after; null: done
create or replace function pgmail.erase_batch(
  p_tenant integer, p_address text, p_reason text, p_after uuid, p_most integer, p_dry_run boolean
) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  a pgmail.address := pgmail.parse_address(p_address); person text; who text := pgmail.actor(); now_ timestamptz := pgmail.now();
  ids uuid[]; late uuid[]; mine uuid[]; alone uuid[]; named uuid[]; busy uuid[];
  cancelled_ integer := 0; discarded_ integer := 0; waiting_ integer := 0; changed_ integer := 0; listed integer; next_ uuid;
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 10000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 10,000'); end if;
  if not p_dry_run then
    -- Two erasures of one tenant go one after the other: they may meet in an email.
    perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || p_tenant, 0));
    insert into pgmail.erasure_salt (tenant_id, salt)
    values (p_tenant, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))) on conflict do nothing;
  end if;
  person := pgmail.erased_token(p_tenant, a.address);

  select array_agg(x.id order by x.id) into ids from (
    select y.id from pgmail.recipient y where y.tenant_id = p_tenant and y.address = a.address and (p_after is null or y.id > p_after)
    order by y.id limit p_most) x;
  ids := coalesce(ids, '{}');
  next_ := case when cardinality(ids) = p_most then ids[p_most] end;

  if p_dry_run then
    select count(*) filter (where q.leased_by is null), coalesce(array_agg(q.id) filter (where q.leased_by is not null), '{}') into cancelled_, late
      from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids);
    select count(*) into discarded_ from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids);
  else
    with free as materialized (
      select q.id, q.message_id, q.lane, q.attempts, case when q.in_doubt then ' (in doubt: it may have been sent)' else '' end as doubt from pgmail.queue q
      where q.tenant_id = p_tenant and q.id = any (ids) and q.leased_by is null order by q.id for update skip locked
    ), gone as (
      delete from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
    ), facts as materialized (
      select free.*, g.stream, y.site from free
      cross join lateral (select x.stream from pgmail.message x where x.tenant_id = p_tenant and x.id = free.message_id limit 1) g
      cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = free.id limit 1) y
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
      select p_tenant, f.id, f.message_id, 'cancelled', now_, f.stream, f.site, f.attempts, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, f.id, f.message_id, 'email.cancelled', f.site, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
      select p_tenant, f.stream, 'cancelled', count(*), array[f.lane], array[count(*)] from facts f group by f.stream, f.lane
    )
    select count(*) into cancelled_ from facts;
    with gone as (
      delete from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids) returning d.*
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason)
      select p_tenant, g.recipient_id, g.message_id, 'cancelled', now_, g.stream, g.site, g.attempts, g.code, g.enhanced, g.reply,
        'discarded by ' || who || ': the person was erased' from gone g
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, g.recipient_id, g.message_id, 'email.cancelled', g.site, 'discarded by ' || who || ': the person was erased' from gone g
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n) select p_tenant, g.stream, k.kind, k.sign * count(*)
      from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
    )
    select count(*) into discarded_ from gone;
    late := array(select q.id from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids));
  end if;

  -- Which of these emails are this person's alone, which of the others name the person, and which of those still wait.
  select array_agg(x.message_id) filter (where x.sole), array_agg(x.message_id) filter (where not x.sole and x.in_it and not x.waits),
      array_agg(x.message_id) filter (where not x.sole and x.in_it and x.waits)
    into alone, named, busy
  from (
    select y.message_id, o.sole, o.waits, g.in_it
    from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    cross join lateral (
      select pgmail.erased_content(m.content, m.key_id, a.address, 'x@erased.invalid') <> m.content
          or pgmail.erased_text(m.metadata::text, a.address, '') <> m.metadata::text
          or strpos(lower(m.idempotency_key), a.address) > 0 or m.sender = a.address as in_it
      from pgmail.message m where m.tenant_id = p_tenant and m.id = y.message_id limit 1) g
    cross join lateral (
      select count(*) = 0 as sole, coalesce(bool_or(
          exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = z.id)
          or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = z.id)), false) as waits
      from pgmail.recipient z where z.tenant_id = p_tenant and z.message_id = y.message_id and z.id <> u.id) o
    where u.id <> all (late)) x;
  mine := array(
    select u.id from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    where u.id <> all (late) and (busy is null or y.message_id <> all (busy)));
  waiting_ := cardinality(ids) - cardinality(late) - cardinality(mine);
  changed_ := coalesce(cardinality(alone), 0) + coalesce(cardinality(named), 0);
  select count(*) into listed from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address;

  if not p_dry_run then
    -- Tags, which hold no @ but may hold a name, are found by name and value.
    delete from pgmail.tag x using (
      select m.id, k.key, k.value from pgmail.message m, jsonb_each_text(m.tags) k where m.tenant_id = p_tenant and m.id = any (alone)) g
     where x.tenant_id = p_tenant and x.name = g.key and x.value = g.value and x.message_id = g.id;
    update pgmail.message m set content = pgmail.erased_content(pgmail.emptied(m.content, m.key_id), null, a.address, person), key_id = null, tags = null,
      metadata = null, idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (alone);
    delete from pgmail.attachment x where x.tenant_id = p_tenant and x.message_id = any (alone);
    update pgmail.message m set content = pgmail.erased_content(m.content, m.key_id, a.address, person),
      metadata = pgmail.erased_text(m.metadata::text, a.address, person)::jsonb,
      idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (named);
    update pgmail.event e set reply = pgmail.erased_text(e.reply, a.address, person), detail = pgmail.erased_text(e.detail, a.address, person)
     where e.tenant_id = p_tenant and e.recipient_id = any (mine)
       and (e.reply, e.detail) is distinct from (pgmail.erased_text(e.reply, a.address, person), pgmail.erased_text(e.detail, a.address, person));
    update pgmail.outcome o set reply = pgmail.erased_text(o.reply, a.address, person), reason = pgmail.erased_text(o.reason, a.address, person)
     where o.tenant_id = p_tenant and o.recipient_id = any (mine)
       and (o.reply, o.reason) is distinct from (pgmail.erased_text(o.reply, a.address, person), pgmail.erased_text(o.reason, a.address, person));
    update pgmail.recipient y set address = person, rcpt = null, name = null, variables = null, key_id = null
     where y.tenant_id = p_tenant and y.id = any (mine);
    if p_after is null then
      perform pgmail.record_act(p_tenant, 'person.erase', person, pgmail.erased_text(p_reason, a.address, person));
    end if;
    if next_ is null then
      with opted as (
        delete from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address returning s.*
      )
      insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
      select o.tenant_id, person, o.stream, o.reason, pgmail.erased_text(o.source, a.address, person), o.created_at, o.created_by, o.expires_at from opted o
      on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
        created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at;
      update pgmail.audit x set object = pgmail.erased_text(x.object, a.address, person), reason = pgmail.erased_text(x.reason, a.address, person)
       where x.tenant_id = p_tenant
         and (x.object, x.reason) is distinct from (pgmail.erased_text(x.object, a.address, person), pgmail.erased_text(x.reason, a.address, person));
    end if;
  end if;
  return jsonb_build_object('person', person, 'recipients', cardinality(mine), 'messages', changed_, 'cancelled', cancelled_,
    'discarded', discarded_, 'too_late', cardinality(late), 'waiting', waiting_, 'suppressions', case when next_ is null then listed else 0 end, 'next', next_);
end
$$;

-- Erases a person of the caller's tenant: `most` emails a call, on from `after`, until `next` is null.
create or replace function pgmail.erase(address text, reason text, after uuid default null, most integer default 1000, dry_run boolean default false) returns jsonb
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pgmail.erase_batch(pgmail.need_tenant(), erase.address, erase.reason, erase.after, erase.most, erase.dry_run) $$;

-- The same of another tenant, by its name: an administrator's.
create or replace function pgmail.erase_for(
  tenant text, address text, reason text, after uuid default null, most integer default 1000, dry_run boolean default false
) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = erase_for.tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(tenant, 63)), 404); end if;
  return pgmail.erase_batch(t, address, reason, after, most, dry_run);
end
$$;
