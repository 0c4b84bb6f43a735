-- What variables may come to, as JSON in octets and in depth: a render copies them, and a reader walks them.
create or replace function pgmail.fits(p_variables jsonb, p_most integer) returns boolean
language sql immutable parallel safe
as $$ select octet_length(p_variables::text) <= p_most and not p_variables @? '$.**{33}' $$;

create or replace function pgmail.variables_fault(p_variables jsonb, p_most integer) returns text
language sql immutable parallel safe
as $$ select case when octet_length(p_variables::text) > p_most then p_most || ' octets as JSON at most' else 'nested more than 32 deep' end
      where not pgmail.fits(p_variables, p_most) $$;
