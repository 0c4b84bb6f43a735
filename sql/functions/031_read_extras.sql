-- The rarer parts of an email: headers, attachments, tags, metadata. Called by read_email with what it knows so far;
-- puts them into the record, checked, and the attachments' octets into size_bytes.
create or replace function pgmail.read_extras(p_tenant integer, b jsonb, e pgmail.email) returns pgmail.email
language plpgsql stable
as $$
declare
  v jsonb; item jsonb; r record; i integer; f text; kept jsonb; part jsonb; bytes bigint := 0; n integer;
  asset pgmail.asset; name_ text; val text;
begin
  v := b->'headers';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_header', '/headers', 'must be an object'); end if;
    if (select count(*) from jsonb_object_keys(v)) > 50 then
      return pgmail.faulty('invalid_header', '/headers', 'more than 50 headers');
    end if;
    for r in select x.key, x.value from jsonb_each(v) x order by x.key collate "C" loop
      f := '/headers/' || pgmail.pointer(r.key);
      if r.key !~ '^[!-9;-~]{1,76}$' then return pgmail.faulty('invalid_header', f, 'not a header name'); end if;
      if lower(r.key) in ('from', 'to', 'cc', 'bcc', 'subject', 'date', 'message-id', 'reply-to', 'sender',
                          'return-path', 'received', 'mime-version', 'dkim-signature', 'return-receipt-to',
                          'disposition-notification-to', 'authentication-results', 'domainkey-signature', 'x-google-dkim-signature',
                          'received-spf', 'x-received', 'delivered-to', 'x-original-to', 'envelope-to', 'envelope-from',
                          'original-recipient', 'apparently-to', 'errors-to')
         or lower(r.key) ~ '^(content-|resent-|arc-|dkim-|bimi-|x-envelope-)' then
        return pgmail.faulty('reserved_header', f, 'pgmail sets this header itself');
      end if;
      if jsonb_typeof(r.value) <> 'string' then return pgmail.faulty('invalid_header', f, 'must be a string'); end if;
      if length(r.value #>> '{}') > 2000 then return pgmail.faulty('invalid_header', f, 'longer than 2,000 characters'); end if;
      if pgmail.has_control(r.value #>> '{}') then return pgmail.faulty('invalid_header', f, 'has a control character'); end if;
    end loop;
    if v <> '{}' then e.headers := v; end if;
  end if;

  v := b->'attachments';
  if v is not null then
    if jsonb_typeof(v) <> 'array' then return pgmail.faulty('invalid_attachment', '/attachments', 'must be an array'); end if;
    if jsonb_array_length(v) > 100 then return pgmail.faulty('invalid_attachment', '/attachments', 'more than 100 attachments'); end if;
    kept := '[]';
    for i in 0 .. jsonb_array_length(v) - 1 loop
      item := v->i; f := '/attachments/' || i; part := '{}';
      if jsonb_typeof(item) <> 'object' then return pgmail.faulty('invalid_attachment', f, 'must be an object'); end if;
      if item - array['filename', 'content', 'content_type', 'content_id', 'asset', 'path'] <> '{}' then
        return pgmail.faulty('invalid_attachment', f, 'has an unknown key');
      end if;
      if item->>'path' is not null then
        return pgmail.faulty('invalid_attachment', f || '/path', 'attachments are not fetched from URLs; send the content');
      end if;
      foreach name_ in array array['filename', 'content_type', 'content_id', 'asset'] loop
        val := item->>name_;
        continue when val is null;
        if jsonb_typeof(item->name_) <> 'string' or pgmail.has_control(val) or octet_length(val) > 255 or btrim(val, ' ') = '' then
          return pgmail.faulty('invalid_attachment', f || '/' || name_, 'must be a string of 1 to 255 octets without control characters');
        end if;
        part := part || jsonb_build_object(name_, val);
      end loop;
      if pgmail.has_bidi(item->>'filename') then
        return pgmail.faulty('invalid_attachment', f || '/filename', 'has a mark that turns the direction of the text');
      end if;
      val := item->>'content_id';
      if val ~ '[<> ]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'has a space, < or >'); end if;
      if val ~ '[^\x21-\x7e]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'must be ASCII'); end if;
      val := lower(item->>'content_type');
      if val is not null and (val !~ '^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}( *; *[a-z0-9_-]+=("[^"\\]*"|[^ ;"\\]+))*$'
                              or val ~ '^(multipart|message)/') then
        return pgmail.faulty('invalid_attachment', f || '/content_type', 'must be a type/subtype other than multipart and message');
      end if;
      if item->>'asset' is not null then
        if item->>'content' is not null then
          return pgmail.faulty('invalid_attachment', f, 'has both content and asset');
        end if;
        select * into asset from pgmail.asset x where x.tenant_id = p_tenant and x.name = item->>'asset';
        if not found then
          return pgmail.faulty('unknown_asset', f || '/asset', format('no asset is named %L', left(item->>'asset', 128)));
        end if;
        part := jsonb_build_object('filename', asset.filename, 'content_type', asset.content_type) || part
                || jsonb_build_object('size', asset.size_bytes);
        bytes := bytes + asset.size_bytes;
      else
        if item->>'filename' is null then
          return pgmail.faulty('invalid_attachment', f || '/filename', 'a filename is required');
        end if;
        if jsonb_typeof(item->'content') is distinct from 'string' then
          return pgmail.faulty('invalid_attachment', f || '/content', 'must be the content in base64');
        end if;
        -- Only an upper bound before decoding: a body far too large is not worth decoding.
        if octet_length(item->>'content') > 60000000 then
          return pgmail.faulty('too_large', '', 'an attachment alone exceeds 26,214,400 octets', 413);
        end if;
        begin
          n := octet_length(decode(item->>'content', 'base64'));
        exception when others then
          return pgmail.faulty('invalid_attachment', f || '/content', 'is not valid base64');
        end;
        part := part || jsonb_build_object('content', item->>'content', 'size', n);
        bytes := bytes + n;
      end if;
      kept := kept || part;
    end loop;
    if kept <> '[]' then e.attachments := kept; end if;
    e.size_bytes := least(bytes, 2000000000);
  end if;

  v := b->'tags';
  if v is not null then
    if jsonb_typeof(v) not in ('array', 'object') then return pgmail.faulty('invalid_tag', '/tags', 'must be an array or an object'); end if;
    kept := '{}';
    n := 0;
    for r in
      select '/tags/' || (ord - 1) as field, x->'name' as name, x->'value' as value,
             jsonb_typeof(x) = 'object' and x - array['name', 'value'] = '{}' as shape
      from jsonb_array_elements(case jsonb_typeof(v) when 'array' then v else '[]' end) with ordinality u(x, ord)
      union all
      select * from (select '/tags/' || pgmail.pointer(x.key), to_jsonb(x.key), x.value, true
      from jsonb_each(case jsonb_typeof(v) when 'object' then v else '{}' end) x order by x.key collate "C") o
    loop
      n := n + 1;
      if n > 20 then return pgmail.faulty('invalid_tag', '/tags', 'more than 20 tags'); end if;
      if not r.shape or jsonb_typeof(r.name) is distinct from 'string' or jsonb_typeof(r.value) is distinct from 'string'
         or r.name #>> '{}' !~ '^[A-Za-z0-9_-]+$' or r.value #>> '{}' !~ '^[A-Za-z0-9_-]+$'
         or length(r.name #>> '{}') > 256 or length(r.value #>> '{}') > 256 then
        return pgmail.faulty('invalid_tag', r.field, 'names and values are 1 to 256 of A-Z a-z 0-9 _ -');
      end if;
      kept := kept || jsonb_build_object(r.name #>> '{}', r.value);
    end loop;
    if kept <> '{}' then e.tags := kept; end if;
  end if;

  v := b->'metadata';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_metadata', '/metadata', 'must be an object'); end if;
    if octet_length(v::text) > 16384 then return pgmail.faulty('invalid_metadata', '/metadata', 'more than 16 kB as JSON'); end if;
    e.metadata := v;
  end if;
  return e;
end
$$;
