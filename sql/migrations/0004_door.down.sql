-- Takes back what 0004 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas

-- end of quotas

------------------------------------------------------------------------------------------------ test mail

-- end of test mail

------------------------------------------------------------------------------------------------ sealing
do $do$ begin
  if exists (select from pgmail.data_key) then
    raise exception using errcode = 'PM409', constraint = 'sealed_mail', message = 'there are data keys, and without them sealed mail '
      || 'can never be read again; once none is needed: delete from pgmail.data_key';
  end if;
end $do$;
drop function if exists pgmail.postpone_v1(integer, bigint, uuid[], integer[], double precision, text);
drop function if exists pgmail.seal_state_v1();
drop function if exists pgmail.rewrap_data_key(integer, integer, bytea, bytea, text, text);
drop function if exists pgmail.add_data_key(text, bytea, text, text);
drop function if exists pgmail.first_data_key_v1(bytea, text);
drop function if exists pgmail.store_data_key(integer, bytea, text, text, boolean);
drop function if exists pgmail.read_sealed(integer, jsonb);
drop function if exists pgmail.put_sealed(integer, jsonb, pgmail.email);
drop function if exists pgmail.fits_sealed(bytea, bigint);
drop function if exists pgmail.octets_of(jsonb);
alter type pgmail.email drop attribute if exists message_id, drop attribute if exists seal_key;
drop table pgmail.data_key;
alter table pgmail.stream drop column seal;

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;
