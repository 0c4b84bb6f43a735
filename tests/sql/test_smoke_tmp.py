def test_a(db):
    with db.connect() as c:
        print(c.execute("select collname, collprovider from pg_collation where collname in ('und-x-icu','pg_c_utf8','C.utf8','en_US.utf8','C.UTF-8') ").fetchall())
        print(c.execute("select datlocprovider, datcollate, datctype from pg_database where datname=current_database()").fetchall())
        print(c.execute("select name from pg_available_extensions").fetchall())
        print(c.execute("select lower('Ü'), lower('İΣ'), lower('Ü' collate \"und-x-icu\")").fetchall())
def test_b(db): pass
def test_c(db, db_clock): pass
