-- Addresses: parsed, judged and normalised here, for every way in (ops/docs/email.md, "Addresses").

-- A label of an internationalised domain as Punycode, without the prefix (RFC 3492, section 6.3).
create or replace function pgmail.punycode(p_label text) returns text
language plpgsql immutable strict parallel safe
as $$
declare
  n integer := 128; delta integer := 0; bias integer := 72; h integer; b integer; m integer; q integer; k integer;
  t integer; c integer; digit integer; total integer := length(p_label); codes integer[]; out_ text := '';
  first boolean := true;
begin
  select array_agg(ascii(x) order by i) into codes from unnest(string_to_array(p_label, null)) with ordinality u(x, i);
  select coalesce(string_agg(chr(x), '' order by i), '') into out_ from unnest(codes) with ordinality u(x, i) where x < 128;
  b := length(out_); h := b;
  if b > 0 then out_ := out_ || '-'; end if;
  while h < total loop
    select min(x) into m from unnest(codes) x where x >= n;
    delta := delta + (m - n) * (h + 1);
    n := m;
    foreach c in array codes loop
      if c < n then delta := delta + 1; end if;
      if c = n then
        q := delta; k := 36;
        loop
          t := case when k <= bias then 1 when k >= bias + 26 then 26 else k - bias end;
          exit when q < t;
          digit := t + (q - t) % (36 - t);
          out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', digit + 1, 1);
          q := (q - t) / (36 - t);
          k := k + 36;
        end loop;
        out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', q + 1, 1);
        -- adapt the bias
        delta := case when first then delta / 700 else delta / 2 end;
        first := false;
        delta := delta + delta / (h + 1);
        k := 0;
        while delta > 455 loop delta := delta / 35; k := k + 36; end loop;
        bias := k + 36 * delta / (delta + 38);
        delta := 0;
        h := h + 1;
      end if;
    end loop;
    delta := delta + 1; n := n + 1;
  end loop;
  return out_;
end
$$;

-- Lower case, one character for one, whatever the database's locale: a Turkish one would make a dotless i of ASCII, and
-- C would leave what is not ASCII as it is. Dotted capital I and final sigma are where locales differ.
do $do$
declare c text := (
  select quote_ident(collname) from pg_collation
  where collname in ('pg_c_utf8', 'C.utf8', 'C.UTF-8', 'en_US.utf8', 'en_US.UTF-8', 'und-x-icu')
    and collnamespace = 'pg_catalog'::regnamespace and collencoding in (-1, pg_char_to_encoding('UTF8'))
  order by array_position(array['pg_c_utf8', 'C.utf8', 'C.UTF-8', 'en_US.utf8', 'en_US.UTF-8', 'und-x-icu'], collname::text) limit 1);
begin
  execute format($f$
    create or replace function pgmail.lower_text(p_text text) returns text
    language sql immutable strict parallel safe
    as $b$ select case when p_text ~ '[^\x01-\x7f]' then lower(translate(p_text, U&'\0130\03A3', U&'i\03C3') collate pg_catalog.%s) collate "default"
                       else lower(p_text collate "C") collate "default" end $b$$f$, coalesce(c, '"default"'));
end $do$;

-- A domain in lower-case A-labels, or null when it is none. Full-width and other dots count as dots (RFC 3490, 3.1).
create or replace function pgmail.domain_ascii(p_domain text) returns text
language plpgsql immutable strict parallel safe
as $$
declare d text := pgmail.lower_text(p_domain); l text; labels text[] := '{}';
begin
  if length(d) > 253 then return null; end if;
  if d ~ '[^\x01-\x7f]' then
    d := pgmail.lower_text(normalize(translate(d, U&'\3002\FF0E\FF61', '...'), NFKC));
    if d ~ '[\u0080-\u009f\u00ad\u2000-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff]' then return null; end if;
    foreach l in array string_to_array(d, '.') loop
      labels := labels || case when l ~ '[^\x01-\x7f]' then 'xn--' || pgmail.punycode(l) else l end;
    end loop;
    d := array_to_string(labels, '.');
  end if;
  if d !~ '^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
     or d ~ '(^|\.)[0-9]+$' or octet_length(d) > 253 then
    return null;
  end if;
  return d;
end
$$;

do $do$ begin
  if to_regtype('pgmail.address') is null then
    create type pgmail.address as (
      address text,   -- lower-case: what is compared
      rcpt    text,   -- the local part as given, the domain in A-labels: what is sent to
      name    text,
      domain  text,
      fault   text    -- why it is no address; the rest is null then
    );
  end if;
end $do$;

create or replace function pgmail.parse_address(p_text text) returns pgmail.address
language plpgsql immutable parallel safe
as $$
declare a pgmail.address; spec text; name_ text; cut integer; local_ text;
begin
  if octet_length(p_text) > 1000 then a.fault := 'longer than 1,000 octets'; return a; end if;
  if p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' then a.fault := 'has a control character'; return a; end if;
  spec := btrim(p_text, ' ');
  if right(spec, 1) = '>' then
    cut := length(spec) - strpos(reverse(spec), '<') + 1;
    if cut > length(spec) then a.fault := 'has ">" without "<"'; return a; end if;
    name_ := btrim(left(spec, cut - 1), ' ');
    spec := substr(spec, cut + 1, length(spec) - cut - 1);
    if left(name_, 1) = '"' then
      if name_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted name'; return a; end if;
      name_ := regexp_replace(substr(name_, 2, length(name_) - 2), '\\(.)', '\1', 'g');
    elsif name_ ~ '[<>"]' then
      a.fault := 'has <, > or " in an unquoted name'; return a;
    end if;
  end if;
  cut := length(spec) - strpos(reverse(spec), '@') + 1;
  if cut > length(spec) then a.fault := 'has no @'; return a; end if;
  local_ := left(spec, cut - 1);
  if local_ = '' then a.fault := 'has nothing before the @'; return a; end if;
  if octet_length(local_) > 64 then a.fault := 'has more than 64 octets before the @'; return a; end if;
  if local_ !~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*$' then
    if left(local_, 1) = '"' then
      if local_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted local part'; return a; end if;
    elsif local_ ~ '[][ ()<>@,;:\\"]' or local_ ~ '(^\.|\.\.|\.$)' then
      a.fault := 'has a character or dot before the @ where none may stand'; return a;
    end if;
  end if;
  if pgmail.has_bidi(local_) then a.fault := 'has a mark that turns the direction of the text'; return a; end if;
  a.domain := pgmail.domain_ascii(substr(spec, cut + 1));
  if a.domain is null then a.fault := 'has no valid domain after the @'; return a; end if;
  a.rcpt := local_ || '@' || a.domain;
  if octet_length(a.rcpt) > 254 then
    a := null; a.fault := 'longer than 254 octets'; return a;
  end if;
  a.address := pgmail.lower_text(a.rcpt);
  a.name := nullif(name_, '');
  return a;
end
$$;

-- Whether anybody was ever erased here: only then are addresses looked up by their tokens, too (pgmail.suppressed_as).
create or replace function pgmail.has_erased(p_tenant integer) returns boolean
language sql stable security definer set search_path = pgmail, pg_temp
as $$ select exists (select from pgmail.erasure_salt x where x.tenant_id = p_tenant) $$;
