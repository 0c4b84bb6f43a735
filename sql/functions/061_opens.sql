-- Which workers open sealed mail: each tells the names of its key-encryption keys when it starts (ops/docs/sealing.md). One that
-- lacks a key leaves the mail to those that have it, and people are told when nobody has.

create or replace function pgmail.worker_opens_v1(p_epoch bigint, p_keks text[]) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  delete from pgmail.worker_key k where not exists (select from pgmail.worker w where w.epoch = k.epoch);
  insert into pgmail.worker_key (epoch, kek) select p_epoch, k from (select unnest(p_keks) union select '') x(k) on conflict do nothing;
$$;

-- The tenants whose mail is sealed with a key that is not among these, and that another running worker has. Where all workers
-- have the same keys it reads a handful of rows.
create or replace function pgmail.sealed_elsewhere_v1(p_mine text[]) returns setof integer
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare others text[];
begin
  select array_agg(distinct k.kek) into others from pgmail.worker_key k join pgmail.worker w on w.epoch = k.epoch
   where k.kek <> all (p_mine || ''::text);
  if others is null then return; end if;
  return query
  select d.tenant_id from (
    select distinct on (x.tenant_id) x.tenant_id, x.kek from pgmail.data_key x order by x.tenant_id, x.id desc) d
  where d.kek = any (others);
end
$$;

-- Why nobody opens what is sealed with a data key, in words; null where somebody does, or nobody can tell: a worker of an older
-- program says nothing of its keys.
create or replace function pgmail.sealed_wait(p_tenant integer, p_key integer) returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select format('it is sealed with the key %L, which no running worker has (PGMAIL_SEAL_KEYS)', d.kek)
  from pgmail.data_key d
  where d.tenant_id = p_tenant and d.id = p_key
    and exists (select from pgmail.worker w where w.program = 'worker')
    and not exists (
      select from pgmail.worker w where w.program = 'worker' and (
        not exists (select from pgmail.worker_key k where k.epoch = w.epoch)
        or exists (select from pgmail.worker_key k where k.epoch = w.epoch and k.kek = d.kek)))
$$;
