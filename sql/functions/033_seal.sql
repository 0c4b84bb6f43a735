-- Sealed mail: an email whose texts, variables and files were sealed before they came here (ops/docs/sealing.md). Its plain body
-- comes along and is judged as any other, by the same law and in the same statement; what is stored of it is the sealed form,
-- which came under the key "sealed": {"tenant", "id", "key", "content", "attachments", "variables", "hash"}. No way in that people write
-- by hand takes that key: pgmail's own programs add it.

create or replace function pgmail.octets_of(p_base64 jsonb) returns bytea
language plpgsql immutable
as $$
begin
  if jsonb_typeof(p_base64) is distinct from 'string' then return null; end if;
  return decode(p_base64 #>> '{}', 'base64');
exception when others then
  return null;
end
$$;

-- Sealed octets of a plain text of this size: a nonce of 12 and a tag of 16 more. JSON of the same values may be written in
-- several ways (1e9 or 1000000000), so twice is allowed; what is far larger is not the same thing.
create or replace function pgmail.fits_sealed(p_sealed bytea, p_plain bigint) returns boolean
language sql immutable
as $$ select coalesce(octet_length(p_sealed) between 28 and 2 * p_plain + 1024, false) $$;

-- Puts the sealed form into an email that was read. Who seals makes the id, since what is sealed is bound to it; it must be of
-- now, or its row would be looked for in another partition than it is in.
create or replace function pgmail.put_sealed(p_tenant integer, p_sealed jsonb, e pgmail.email) returns pgmail.email
language plpgsql stable
as $$
declare open_ jsonb; files jsonb; given uuid; octets bytea; fits boolean;
begin
  if jsonb_typeof(p_sealed) is distinct from 'object'
     or p_sealed - array['tenant', 'id', 'key', 'content', 'attachments', 'variables', 'hash'] <> '{}'
     or coalesce(p_sealed->>'id', '') !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
     or coalesce(p_sealed->>'key', '') !~ '^[1-9][0-9]{0,8}$' then
    return pgmail.faulty('invalid_seal', '/sealed', 'is not as pgmail writes it; clients leave this key out');
  end if;
  if p_sealed->>'tenant' is distinct from p_tenant::text then
    return pgmail.faulty('invalid_seal', '/sealed/tenant', 'was sealed for another tenant: one Sealer is for one tenant''s connections');
  end if;
  given := (p_sealed->>'id')::uuid;
  if pgmail.uuid_time(given) not between clock_timestamp() - interval '10 minutes' and clock_timestamp() + interval '10 minutes' then
    return pgmail.faulty('invalid_seal', '/sealed/id', 'is of another time: the clock of the host that sealed it is wrong');
  end if;
  if not exists (select from pgmail.data_key d where d.tenant_id = p_tenant and d.id = (p_sealed->>'key')::integer) then
    return pgmail.faulty('invalid_seal', '/sealed/key', 'there is no such data key');
  end if;
  octets := pgmail.octets_of(p_sealed->'content');
  -- The names of files are sealed with the content, and in the clear stand beside it.
  if not pgmail.fits_sealed(octets, octet_length(e.content) + coalesce((
       select sum(octet_length(coalesce(to_jsonb(a->>'filename')::text, 'null')) + 1) from jsonb_array_elements(e.attachments) a), 0)) then
    return pgmail.faulty('invalid_seal', '/sealed/content', 'is not the sealed form of this email');
  end if;

  if e.attachments is not null then
    select jsonb_agg(case when a ? 'content' then a || jsonb_build_object('content', s, 'filename', 'sealed') else a end order by i),
        coalesce(bool_and(pgmail.fits_sealed(pgmail.octets_of(s), (a->>'size')::bigint)) filter (where a ? 'content'), true)
      into files, fits
      from (select x as a, p_sealed->'attachments'->(o - 1)::integer as s, o as i
            from jsonb_array_elements(e.attachments) with ordinality u(x, o)) y;
    if not fits then return pgmail.faulty('invalid_seal', '/sealed/attachments', 'are not the sealed form of these attachments'); end if;
    e.attachments := files;
  end if;
  if exists (select from unnest(e.people) p where p.variables is not null) then
    if exists (select from unnest(e.people) p where p.variables is not null
               and not pgmail.fits_sealed(pgmail.octets_of(p_sealed->'variables'->p.address), octet_length(p.variables::text))) then
      return pgmail.faulty('invalid_seal', '/sealed/variables', 'are not the sealed form of these variables');
    end if;
    e.people := array(
      select (p.role, p.address, p.rcpt, p.name, p.domain,
              case when p.variables is not null then p_sealed->'variables'->p.address end)::pgmail.person
      from unnest(e.people) with ordinality p order by p.ordinality);
  end if;

  -- Who it is from and to stands open, beside what is sealed; that there are variables makes templates of the texts. Headers
  -- that are null nobody can read who knows nothing of sealing: an older worker makes a dead letter of it, not an empty mail.
  open_ := convert_from(e.content, 'UTF8')::jsonb;
  open_ := open_ - array['subject', 'text', 'html', 'headers'] || jsonb_build_object('sealed', p_sealed->'content', 'headers', null)
           || case when open_ ? 'variables' then '{"variables": {}}'::jsonb else '{}' end;
  e.content := convert_to(open_::text, 'UTF8');
  e.message_id := given;
  e.seal_key := (p_sealed->>'key')::integer;
  if e.idempotency_key is not null then
    -- Keyed: the plain hash of a short text, such as a code of six digits, would tell the text.
    octets := pgmail.octets_of(p_sealed->'hash');
    if octets is null or octet_length(octets) <> 32 then
      return pgmail.faulty('invalid_seal', '/sealed/hash', 'is needed beside an idempotency key');
    end if;
    e.body_hash := octets;
  end if;
  return e;
end
$$;

-- The email by the whole law, where it is not plain: sealed, or on a stream where that matters.
create or replace function pgmail.read_sealed(p_tenant integer, p_body jsonb) returns pgmail.email
language plpgsql stable
as $$
declare e pgmail.email; b jsonb; sealed jsonb;
begin
  if jsonb_typeof(p_body) is distinct from 'object' or not p_body ? 'sealed' then
    e := pgmail.read_email(p_tenant, p_body);
    if e.fault_code is null and exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = e.stream and s.seal = 'required') then
      return pgmail.faulty('sealing_required', '/stream', format(
        'stream %L takes sealed mail only: by HTTP or Python, from a program that has PGMAIL_SEAL_KEYS', e.stream));
    end if;
    return e;
  end if;
  b := p_body - 'sealed'; sealed := p_body->'sealed';
  e := pgmail.read_email(p_tenant, b);
  if e.fault_code = 'time_in_past' and exists (
       select from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = b->>'idempotency_key'
         and d.body_hash = pgmail.octets_of(sealed->'hash') and d.expires_at > pgmail.now()) then
    e := pgmail.read_email(p_tenant, b - array['scheduled_at', 'expires_at']);   -- a repetition of what was right then
  end if;
  if e.fault_code is not null then return e; end if;
  return pgmail.put_sealed(p_tenant, sealed, e);
end
$$;
