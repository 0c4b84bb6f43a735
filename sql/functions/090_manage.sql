-- What a tenant keeps beside its mail: templates, assets, streams. All act as the caller's tenant.

-- Saves a new version of a template, as a draft or published. required and depends come from the compiler of the
-- Python ways in, which checked the source.
create or replace function pgmail.save_template(
  p_name text, p_subject text, p_text text, p_html text, p_required text[], p_depends jsonb, p_publish boolean
) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); v integer;
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if p_text is null and p_html is null then perform pgmail.refuse('missing_field', '/text', 'text or html is required'); end if;
  if octet_length(p_subject) > 16384 then perform pgmail.refuse('too_large', '/subject', 'more than 16,384 octets', 413); end if;
  if octet_length(p_text) > 1048576 then perform pgmail.refuse('too_large', '/text', 'more than 1,048,576 octets', 413); end if;
  if octet_length(p_html) > 1048576 then perform pgmail.refuse('too_large', '/html', 'more than 1,048,576 octets', 413); end if;
  -- Two people saving at once get two versions, not a fault.
  perform pg_advisory_xact_lock(hashtextextended('pgmail.template/' || t || '/' || p_name, 0));
  select coalesce(max(x.version), 0) + 1 into v from pgmail.template x where x.tenant_id = t and x.name = p_name;
  insert into pgmail.template (tenant_id, name, version, state, subject, body_text, body_html, required, depends, created_by, published_at)
  values (t, p_name, v, case when p_publish then 'published' else 'draft' end, p_subject, p_text, p_html,
    p_required, p_depends, pgmail.actor(), case when p_publish then pgmail.now() end);
  perform pgmail.record_act(t, 'template.save', p_name || ' v' || v, case when p_publish then 'published' end);
  return v;
end
$$;

create or replace function pgmail.publish_template(p_name text, p_version integer, p_required text[], p_depends jsonb) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant();
begin
  update pgmail.template x set state = 'published', required = p_required, depends = p_depends,
    published_at = coalesce(x.published_at, pgmail.now())
  where x.tenant_id = t and x.name = p_name and x.version = p_version;
  if not found then
    perform pgmail.refuse('unknown_template', '/name', format('no template %L in version %s', p_name, p_version), 404);
  end if;
  perform pgmail.record_act(t, 'template.publish', p_name || ' v' || p_version, null);
end
$$;

create or replace function pgmail.save_asset(p_name text, p_filename text, p_content_type text, p_body bytea) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant();
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if octet_length(p_body) > 26214400 then perform pgmail.refuse('too_large', '/content', 'more than 26,214,400 octets', 413); end if;
  if pgmail.has_control(p_filename) or pgmail.has_control(p_content_type) or pgmail.has_bidi(p_filename) then
    perform pgmail.refuse('invalid_attachment', '/filename', 'has a control character, or a mark that turns the direction of the text');
  end if;
  insert into pgmail.asset as a (tenant_id, name, filename, content_type, size_bytes, body, created_by)
  values (t, p_name, p_filename, p_content_type, octet_length(p_body), p_body, pgmail.actor())
  on conflict (tenant_id, name) do update set filename = excluded.filename, content_type = excluded.content_type,
    size_bytes = excluded.size_bytes, body = excluded.body, created_at = pgmail.now(), created_by = excluded.created_by;
  perform pgmail.record_act(t, 'asset.save', p_name, null);
end
$$;

-- What a stream's key `relay` says: a name, several in the order in which they are tried, or objects of name and weight.
create or replace function pgmail.read_relays(p_relay jsonb, out names text[], out weights real[])
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare x jsonb; i integer := 0; n integer; field text := '/relay'; weighted boolean;
begin
  if jsonb_typeof(p_relay) = 'string' then p_relay := jsonb_build_array(p_relay); else field := '/relay/0'; end if;
  if jsonb_typeof(p_relay) is distinct from 'array' or jsonb_array_length(p_relay) not between 1 and 16 then
    perform pgmail.refuse('invalid_relay', '/relay', 'must be the name of a relay, or 1 to 16 of them in an array');
  end if;
  n := jsonb_array_length(p_relay);
  names := '{}'; weights := '{}';
  for x in select * from jsonb_array_elements(p_relay) loop
    if n > 1 or field <> '/relay' then field := '/relay/' || i; end if;
    weighted := jsonb_typeof(x) = 'object';
    if weighted is distinct from (jsonb_typeof(p_relay->0) = 'object') or not weighted and jsonb_typeof(x) <> 'string' then
      perform pgmail.refuse('invalid_relay', field, 'must be the name of a relay, or all of them objects of name and weight');
    elsif weighted and (jsonb_typeof(x->'name') is distinct from 'string' or jsonb_typeof(x->'weight') is distinct from 'number'
                        or exists (select from jsonb_object_keys(x) y where y not in ('name', 'weight'))) then
      perform pgmail.refuse('invalid_relay', field, 'must be an object of name and weight');
    elsif weighted and not ((x->>'weight')::numeric >= 0.001 and (x->>'weight')::numeric <= 1000) then
      perform pgmail.refuse('invalid_relay', field || '/weight', 'must be from 0.001 to 1000');
    end if;
    names := names || case when weighted then x->>'name' else x#>>'{}' end;
    if weighted then weights := weights || (x->>'weight')::real; end if;
    i := i + 1;
    if names[i] = any (names[:i - 1]) then
      perform pgmail.refuse('invalid_relay', field, format('relay %L comes twice', left(names[i], 63)));
    elsif not exists (select from pgmail.relay r where r.name = names[i]) then
      perform pgmail.refuse('unknown_relay', field, format(
        'no relay is named %L; a worker that has it in PGMAIL_RELAY_URLS must have started once', left(names[i], 63)));
    end if;
  end loop;
  if cardinality(weights) = 0 then weights := null; end if;
end
$$;

-- Creates a stream or changes what is named; keys as the columns of pgmail.stream, and relay as read_relays has it.
create or replace function pgmail.save_stream(p_name text, p_settings jsonb) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); s pgmail.stream; k text; named text[]; weighed real[]; broken text; field text;
begin
  if p_name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of a-z 0-9 _ -, led by a letter or digit');
  end if;
  if jsonb_typeof(p_settings) is distinct from 'object' then
    perform pgmail.refuse('invalid_body', '', 'the settings of a stream are a JSON object');
  end if;
  select min(x collate "C") into k from jsonb_object_keys(p_settings) x
   where x <> all (array['priority', 'relay', 'on_doubt', 'trace', 'retry_base_seconds', 'retry_factor', 'retry_cap_seconds',
     'retry_jitter', 'max_attempts', 'max_age_seconds', 'max_queued', 'keep_content_days', 'suppress_bounced', 'seal']);
  if k is not null then perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(k), 'no such key'); end if;
  if p_settings ? 'relay' then
    select x.names, x.weights into named, weighed from pgmail.read_relays(p_settings->'relay') x;
  end if;
  insert into pgmail.stream (tenant_id, name) values (t, p_name) on conflict do nothing;
  select * into s from pgmail.stream x where x.tenant_id = t and x.name = p_name for update;
  begin
    s := jsonb_populate_record(s, p_settings - 'relay');
    if named is not null then
      s.relay := named[1];
      s.relays := case when cardinality(named) > 1 then named end;
      s.relay_weights := case when cardinality(named) > 1 then weighed end;
    end if;
    update pgmail.stream x set priority = s.priority, relay = s.relay, relays = s.relays, relay_weights = s.relay_weights, on_doubt = s.on_doubt, trace = s.trace,
      retry_base_seconds = s.retry_base_seconds, retry_factor = s.retry_factor, retry_cap_seconds = s.retry_cap_seconds,
      retry_jitter = s.retry_jitter, max_attempts = s.max_attempts, max_age_seconds = s.max_age_seconds, max_queued = s.max_queued,
      keep_content_days = s.keep_content_days, suppress_bounced = s.suppress_bounced, seal = s.seal
    where x.tenant_id = t and x.name = p_name;
  exception
    when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range then
      get stacked diagnostics broken = constraint_name;
      field := substring(broken from '^stream_(.+)_[a-z]+$');
      if field is null or not p_settings ? field then
        select coalesce(min(x), 'name') into field from jsonb_object_keys(p_settings) x;
      end if;
      -- The constraint in words: the words that it allows, or its comparison.
      perform pgmail.refuse('invalid_stream', '/' || field, coalesce((
        select case when d.def like '%ARRAY[%'
          then 'must be one of ' || (select string_agg(w[1], ', ') from regexp_matches(d.def, '''([a-z_]+)''', 'g') w)
          else 'must be so that ' || lower(regexp_replace(d.def, '^CHECK |::double precision|[()]', '', 'g')) end
        from pg_constraint c, lateral (select pg_get_constraintdef(c.oid)) d(def)
        where c.conrelid = 'pgmail.stream'::regclass and c.conname = broken), sqlerrm));
  end;
  perform pgmail.record_act(t, 'stream.save', p_name, p_settings::text);
end
$$;
