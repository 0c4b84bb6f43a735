-- Moments, spans and numbers as sentences have them.

-- A moment, in UTC whatever the session's time zone: who reads it on a page or in a mail sits somewhere else.
create or replace function pgmail.at_words(p_at timestamptz) returns text
language sql stable parallel safe
as $$ select case when isfinite(p_at) then to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' else p_at::text end $$;

-- A span of seconds, in the one unit that says it best: 45 seconds, 25 minutes, 3 hours, 4 days.
create or replace function pgmail.span_words(p_seconds double precision) returns text
language sql immutable parallel safe
as $$
  select case when n = 1 then '1 ' || unit else n || ' ' || unit || 's' end
  from (select case when s < 120 then round(s) when s < 7200 then round(s / 60) when s < 172800 then round(s / 3600) else round(s / 86400) end as n,
          case when s < 120 then 'second' when s < 7200 then 'minute' when s < 172800 then 'hour' else 'day' end as unit
        from (select greatest(p_seconds, 0)) x(s)) y
$$;

-- A number with commas.
create or replace function pgmail.number_words(p_n numeric) returns text
language sql immutable parallel safe
as $$ select to_char(round(p_n), 'FM999,999,999,999,990') $$;

-- A share in per cent.
create or replace function pgmail.share_words(p_share double precision) returns text
language sql immutable parallel safe
as $$ select to_char(p_share * 100, case when p_share < 0.1 then 'FM990.0' else 'FM990' end) || ' %' $$;
