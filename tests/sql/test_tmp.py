from tests.sql import kit
import psycopg, time
from tests.sql.kit import Hand
def test_x(db):
    app=db.connect("producer"); hand=Hand(db.connect("worker")); o=db.connect()
    su=psycopg.connect(db.superuser_dsn,autocommit=True)
    su.execute("load 'auto_explain'; set auto_explain.log_nested_statements=on; set auto_explain.log_min_duration=0; set auto_explain.log_analyze=on; set client_min_messages=log")
    for n in range(12):
        kit.send(app, f"u{n}@example.org"); lanes=hand.lanes(); hand.settle(hand.claim(lanes=lanes))
    o.execute("vacuum analyze pgmail.queue")
    kit.send_many(o,[kit.body(f"u{n}@example.org") for n in range(5000)])
    kit.send_many(o,[kit.body(f"u{n}@d{n%500}.example") for n in range(5000)])
    l=hand.claim(10,lanes=lanes); hand.settle(l)
    hand.connection=su
    l=hand.claim(10,lanes=lanes)
    out=[]
    su.add_notice_handler(lambda d: out.append(d.message_primary))
    hand.settle(l)
    kit.one(su,"select pgmail.repair_lanes_v1()")
    su.close()
    open("/tmp/sq/plan.txt","w").write("\n".join(out))
    assert 0
