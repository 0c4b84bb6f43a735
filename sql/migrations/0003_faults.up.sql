-- Faults: what may have been sent, what replies mean, who gets no mail, what a restored database does, what is kept.

------------------------------------------------------------------------------------------------ in doubt
-- A lease on a stream that holds says here that its worker commits the intent before the end of data: while it equals
-- claims, the mail was surely not sent. Null, as a worker of an older version leaves it, is that it may have been.
-- No index may name these two, for the claim and the intent are HOT updates.
alter table pgmail.queue
  add column unsent_claims integer,
  add column begun_relay text,               -- to whom the intent was
  add column in_doubt boolean not null default false;   -- held since it may have been sent; a person resolves it
create index queue_doubt on pgmail.queue (tenant_id, id) where in_doubt;
update pgmail.queue set in_doubt = true where due_at = 'infinity' and hold_reason like 'in doubt%';

------------------------------------------------------------------------------------------------ replies

------------------------------------------------------------------------------------------------ suppression

------------------------------------------------------------------------------------------------ restore

------------------------------------------------------------------------------------------------ retention

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;
