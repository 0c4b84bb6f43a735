"""Mailings: one email to everybody on a list, each in personal mode, from a file (ops/docs/mailings.md).

table        the file: encoding, delimiter, header, rows
people       a row as a recipient of an email, or what is wrong with it
duplicates   which rows repeat the address of an earlier one, in bounded memory
scan         the first pass: every row judged before anything is sent
trial        what the database says to this email, asked in a transaction that is rolled back
state        the file beside the list that says what was handed over
send         the second pass: a chunk of rows is one email, one transaction and one idempotency key
work         all of it in its order, which is what a program calls
"""
