-- UUIDv7 below PostgreSQL 18 (RFC 9562, section 5.7), as one expression that the planner inlines: a function that is
-- called costs a single send more than the id. 48 bits of milliseconds, the version, 12 bits of the millisecond's
-- fraction, so that ids of one session mostly ascend; the variant and what is random are those of a UUIDv4.
do $do$
begin
  if current_setting('server_version_num')::int < 180000 then
    create or replace function pgmail.uuid7() returns uuid language sql volatile parallel safe as $b$
      select (overlay(lpad(to_hex(floor(date_part('epoch', clock_timestamp()) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
              || substr(gen_random_uuid()::text, 20))::uuid $b$;
  end if;
end
$do$;
