-- What the Python client runs on the caller's own connection, in the caller's transaction. Every value goes in and
-- comes out as text: what an application did to its driver (codecs for jsonb, adapters, row factories) then does not
-- matter. $1 becomes the driver's own mark; no percent sign may stand in this file.

-- name: send :one
-- Enqueue one email; answers its id.
select pgmail.send($1::text::jsonb)::text as answer;

-- name: send_many :one
-- Enqueue many; answers a JSON array with one object an email, in their order.
select coalesce(json_agg(json_build_object(
    'position', s.position, 'id', s.id, 'code', s.code, 'field', s.field, 'message', s.message) order by s.position),
  '[]')::text as answer
from pgmail.send_many($1::text::jsonb, $2::text::boolean, $3::text) s;

-- name: cancel :one
-- Cancel what was not sent yet.
select pgmail.cancel($1::text::uuid, $2::text)::text as answer;

-- name: reschedule :one
-- Move what was not sent yet to another moment.
select pgmail.reschedule($1::text::uuid, $2::text::timestamptz)::text as answer;

-- name: status :one
-- Where each recipient stands.
select coalesce(json_agg(to_json(s)), '[]')::text as answer from pgmail.status($1::text::uuid) s;

-- name: seal_state :one
-- What who seals must know.
select json_build_object('tenant', s.tenant, 'now', s.now, 'streams', s.streams, 'keys', s.keys)::text as answer
from pgmail.seal_state_v1() s;
