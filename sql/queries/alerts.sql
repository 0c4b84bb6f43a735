-- Alerts: the leader looks and tells; people list, set, silence.

-- name: step :many
-- Look at what is true, and move alerts; what moved.
select s.move, s.rule, s.severity, s.tenant, s.subject, s.words, s.silenced from pgmail.alert_step_v1() s;

-- name: purge :one
-- What is over for long goes.
select pgmail.alert_purge_v1() as purged;

-- name: take :many
-- The next delivery of each target that is due, but of those that are being told.
select t.* from pgmail.alert_take_v1(%(most)s, %(busy)s::uuid[]) t;

-- name: give_back :one
-- Deliveries that were broken off, for the next process to tell at once; how many.
select pgmail.alert_give_back_v1(%(ids)s::uuid[]) as given_back;

-- name: told :one
-- How a delivery went; its state now.
select pgmail.alert_told_v1(%(id)s, %(ok)s, %(answer)s, %(final)s) as state;

-- name: saw_certificate :exec
-- When a certificate ends.
select pgmail.saw_certificate_v1(%(name)s, %(place)s, %(ends_at)s);

-- name: missed_certificate :exec
-- That a certificate could not be seen, and why.
select pgmail.missed_certificate_v1(%(name)s, %(place)s, %(answer)s);

-- name: list :many
-- Alerts that the caller sees, those that are open first.
select a.* from pgmail.alerts(%(every)s, %(state)s, %(rule)s, %(limit)s, %(after)s::uuid) a;

-- name: rules :many
-- Rules that the caller sees.
select r.* from pgmail.alert_rules(%(every)s) r;

-- name: set_rule :one
-- Make a rule, or change what is named of one.
select r.name from pgmail.set_alert_rule(%(name)s, %(settings)s, %(reason)s, %(fleet)s) r;

-- name: remove_rule :one
-- Whether there was such a rule until now.
select pgmail.remove_alert_rule(%(name)s, %(reason)s, %(fleet)s) as removed;

-- name: silence :exec
-- Tell nobody of a rule's alerts, or of one subject's.
select pgmail.silence_alert(%(rule)s, %(reason)s, %(until)s, %(subject)s, %(fleet)s);

-- name: unsilence :one
-- Whether it was silenced until now.
select pgmail.unsilence_alert(%(rule)s, %(reason)s, %(subject)s, %(fleet)s) as ended;

-- name: silences :many
-- Silences that hold.
select s.* from pgmail.alert_silences(%(every)s) s;

-- name: targets :many
-- Who is told, and how that goes.
select t.* from pgmail.alert_targets(%(every)s) t;

-- name: tenant :one
-- Which tenant the caller speaks for, if any.
select pgmail.current_tenant() as id;

-- name: add_target :one
-- Tell somebody from now on.
select pgmail.add_alert_target(%(name)s, %(kind)s, %(shown)s, %(secret)s, %(kek)s, %(severity)s, %(fleet)s, %(id)s::uuid) as id;

-- name: remove_target :one
-- Whether there was such a target until now.
select pgmail.remove_alert_target(%(name)s, %(reason)s, %(fleet)s) as removed;

-- name: test_target :one
-- Send a test to a target; the delivery's id.
select pgmail.test_alert_target(%(name)s, %(fleet)s) as id;

-- name: delivery :one
-- What became of a delivery.
select d.state, d.answer from pgmail.alert_delivery_state(%(id)s, %(fleet)s) d;
