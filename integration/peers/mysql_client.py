"""A client of MySQL, which waits for the server to speak first: it asks, and says `ok`, or what was wrong."""

import sys

import pymysql


def connect(password):
    return pymysql.connect(
        host=sys.argv[1], port=int(sys.argv[2]), user="shop", password=password, connect_timeout=10, read_timeout=20
    )


with connect("secret") as connection, connection.cursor() as cursor:
    for number in range(100):
        cursor.execute(f"SELECT {number} + 1")
        assert cursor.fetchone() == (str(number + 1),), number
    cursor.execute("SELECT REPEAT('x', 1000000)")
    assert cursor.fetchone() == ("x" * 1_000_000,)
    try:
        cursor.execute("SELECT nothing")
        raise AssertionError("it is no query")
    except pymysql.err.ProgrammingError as error:
        assert error.args[0] == 1064, error
    connection.ping(reconnect=False)
try:
    connect("wrong")
    raise AssertionError("any password will do")
except pymysql.err.OperationalError as error:
    assert error.args[0] == 1045, error
print("ok")
