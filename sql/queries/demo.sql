-- What `pgmail demo` asks: the little shop that sends mail in its own transactions, and the accounts at the end.

-- name: make_shop :exec
-- An application's own table, which its role may write to.
create schema shop;
create table shop.orders (
  number    text primary key,
  customer  text not null,
  email     uuid not null,
  placed_at timestamptz not null default now()
);
grant usage on schema shop to {producer}, {admin};
grant select, insert on shop.orders to {producer};
grant select on shop.orders to {admin};

-- name: place_order :one
-- The order and its mail, in one transaction of the shop's: both or neither.
insert into shop.orders (number, customer, email)
values (%(number)s, %(customer)s, pgmail.send(%(email)s::text::jsonb))
returning email as id;

-- name: count_orders :one
-- How many orders were placed.
select count(*) as orders from shop.orders;

-- name: cancel :one
-- Take an email back.
select pgmail.cancel(%(id)s, %(reason)s) as answer;

-- name: running_workers :one
-- Workers that said they are there.
select count(*) as workers from pgmail.worker w where w.state = 'running';

-- name: ledger :one
-- The ledger of the caller's tenant.
select l.enqueued, l.scheduled, l.queued, l.sending, l.deferred, l.held, l.sent, l.bounced, l.suppressed, l.expired,
       l.cancelled, l.dead, l.difference
from pgmail.ledger l where l.tenant_id = (select pgmail.current_tenant());

-- name: recipients :many
-- Every recipient, one by one: where it stands, and when its email was enqueued (Unix time, seconds).
select r.id, r.message_id, r.address, m.mode, extract(epoch from m.created_at)::float8 as created_at,
       pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait,
                       pgmail.now()) as state
from pgmail.recipient r
join pgmail.message m on m.tenant_id = r.tenant_id and m.id = r.message_id
left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
where r.tenant_id = (select pgmail.current_tenant());

-- name: clock :one
-- The server's clock (Unix time, seconds), to compare with the one of this host.
select extract(epoch from clock_timestamp())::float8 as now;

-- name: trace :many
-- The journey of an email.
select t.at, t.type, t.address, t.code, t.enhanced, t.reply, t.ms, t.detail from pgmail.trace(%(id)s) t;

-- name: why :one
-- In words, where an email stands.
select pgmail.why(%(id)s) as answer;
