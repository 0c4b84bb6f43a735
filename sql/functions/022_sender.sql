-- Who may send as whom (ops/docs/senders.md): the rule of a tenant, asked at the door by read_plain and read_email.
-- Under the rule 'any', which asks nothing, it costs one look at the tenant; no statement of its own, no lock.

-- Marks that turn the direction of what follows (UAX 9, sections 2.1 to 2.4): they make a name or a file's name read as
-- something else. Marks of one character (U+200E, U+200F, U+061C) are left: right-to-left text needs them.
create or replace function pgmail.has_bidi(p_text text) returns boolean
language sql immutable parallel safe
as $$ select p_text ~ '[\u202a-\u202e\u2066-\u2069]' $$;

-- A domain and all that it lies in: of a.example.com those are a.example.com, example.com and com.
create or replace function pgmail.domain_and_above(p_domain text) returns text[]
language plpgsql immutable strict parallel safe
as $$
declare rest text := p_domain; found_ text[] := array[p_domain]; dot integer;
begin
  loop
    dot := strpos(rest, '.');
    if dot = 0 then return found_; end if;
    rest := substr(rest, dot + 1);
    found_ := array_append(found_, rest);
  end loop;
end
$$;

-- Whether a domain, or one that it lies in, is the tenant's and verified.
create or replace function pgmail.is_sender_domain(p_tenant integer, p_domain text) returns boolean
language sql stable
as $$
  select exists (select from pgmail.sender_domain d where d.tenant_id = p_tenant and d.state = 'verified'
                 and d.domain = any (pgmail.domain_and_above(p_domain)))
$$;

-- All that reads as the domain of an address in a display name: what stands behind each @, of letters, digits and . _ - with a
-- dot inside. What else stands between @ and it, or behind it, hides nothing of it from a reader. Nor does what is invisible
-- or almost, which is dropped first: marks of no width, variation selectors, spaces thinner than a blank. Dots and dashes of
-- other kinds are taken for what they look like. Quotation marks and the like end a domain, other characters outside ASCII are
-- part of it, for there are such domains. A number such as a price ("Shop @ 5.99") is none, since no domain ends in one; four
-- numbers read as an IP address, and count.
create or replace function pgmail.domains_shown(p_name text) returns setof text
language sql immutable strict
as $$
  select btrim(m[1], '.-_')
  from regexp_matches(
    regexp_replace(
      translate(
        normalize(
          regexp_replace(p_name, '[\u00ad\u034f\u061c\u180b-\u180f\u2000-\u200f\u202f\u205f-\u206f\ufe00-\ufe0f\ufeff]', '', 'g'),
          NFKC),
        U&'\3002\2010\2011\2012\2013\2014\2015\2043\2212', '.--------'),
      '[\u00a2-\u00a5\u2016-\u2023\u2027\u2030-\u205e\u20a0-\u20cf]', ' ', 'g'),
    '@[^a-zA-Z0-9\u0080-\uffff]*((?:[a-zA-Z0-9._-]|[^\x01-\x7f])+)', 'g') m
  where m[1] ~ '[^.]\.+[^.]' and btrim(m[1], '.-_') !~ '^[0-9]+([.,][0-9]+){0,2}$'
$$;

-- Why the tenant may not send from this domain under this name, with what to do; null if it may. A name that shows an
-- address is judged by that, too: it is what people see.
create or replace function pgmail.sender_fault(p_tenant integer, p_domain text, p_name text) returns text
language plpgsql stable
as $$
declare shown text;
begin
  if not exists (select from pgmail.tenant x where x.id = p_tenant and x.senders = 'verified') then return null; end if;
  if not pgmail.is_sender_domain(p_tenant, p_domain) then
    return format('%s is no verified domain of this tenant; add it (pgmail domain add %s, or POST /domains), publish the '
                  'TXT record that this shows, and verify it', p_domain, p_domain);
  end if;
  if p_name ~ '[@\ufe6b\uff20]' then
    -- What is no domain at all is refused as well: to a reader it is one.
    select s into shown from pgmail.domains_shown(p_name) s
     where not coalesce(pgmail.is_sender_domain(p_tenant, pgmail.domain_ascii(s)), false) limit 1;
    if shown is not null then
      return format('the name shows an address at %s, which is no verified domain of this tenant', left(shown, 255));
    end if;
  end if;
  return null;
end
$$;
