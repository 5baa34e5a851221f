//! Clients of databases against the real servers: redis, postgres, mysql, memcache.

use squall_compat::crowd::{self, FIBERS};
use squall_compat::server::Server;

#[test]
fn redis_commands_pipelines_and_blocking_pops() {
    let Some(server) = Server::redis() else { return };
    let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
    crowd::run("redis", FIBERS, move |member| {
        let mut connection = client.get_connection().unwrap();
        member.meet();
        let (key, index) = (format!("key:{}", member.index), member.index);
        let command = |name: &str| redis::cmd(name);
        for round in 0..5 {
            let () = command("SET").arg(&key).arg(index * 10 + round).query(&mut connection).unwrap();
            let value: usize = command("GET").arg(&key).query(&mut connection).unwrap();
            assert_eq!(value, index * 10 + round);
            let _: u64 = command("INCR").arg("total").query(&mut connection).unwrap();
        }
        let values: Vec<usize> = redis::pipe()
            .cmd("SET")
            .arg(&key)
            .arg(7)
            .ignore()
            .cmd("INCRBY")
            .arg(&key)
            .arg(index)
            .cmd("GET")
            .arg(&key)
            .query(&mut connection)
            .unwrap();
        assert_eq!(values, [7 + index; 2]);
        // The even ones wait in BLPOP for what the odd ones push only after all have asked: a blocked worker would never push.
        let queue = format!("queue:{}", index / 2);
        if index.is_multiple_of(2) {
            let reply: Option<(String, usize)> =
                command("BLPOP").arg(&queue).arg(60).query(&mut connection).unwrap();
            assert_eq!(reply, Some((queue, index + 1)));
        } else {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let () = command("RPUSH").arg(&queue).arg(index).query(&mut connection).unwrap();
        }
        member.meet();
        let total: usize = command("GET").arg("total").query(&mut connection).unwrap();
        assert_eq!(total, FIBERS * 5);
    });
}

#[test]
fn memcache_values_and_counters() {
    let Some(server) = Server::memcached() else { return };
    let url = format!("memcache://{}?timeout=120&tcp_nodelay=true", server.address());
    crowd::run("memcache", FIBERS, move |member| {
        let client = memcache::connect(url.as_str()).unwrap();
        if member.index == 0 {
            client.set("total", "0", 0).unwrap();
        }
        member.meet();
        let key = format!("key{}", member.index);
        for round in 0..5 {
            let value = format!("{}-{round}", member.index);
            client.set(&key, value.as_str(), 0).unwrap();
            assert_eq!(client.get::<String>(&key).unwrap(), Some(value));
            client.increment("total", 1).unwrap();
        }
        member.meet();
        let total: Option<String> = client.get("total").unwrap();
        assert_eq!(total.unwrap().trim(), (FIBERS * 5).to_string());
    });
}

#[test]
fn postgres_transactions_prepared_statements_and_locks() {
    let Some(server) = Server::postgres() else { return };
    let port = server.address().port();
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    crowd::run("postgres", FIBERS, move |member| {
        let mut client = postgres::Client::connect(&url, postgres::NoTls).unwrap();
        let index = member.index as i32;
        if index == 0 {
            client.batch_execute("CREATE TABLE numbers (fiber int, round int, text text)").unwrap();
        }
        member.meet();
        let insert = client.prepare("INSERT INTO numbers VALUES ($1, $2, $3)").unwrap();
        for round in 0..3_i32 {
            let mut transaction = client.transaction().unwrap();
            transaction.execute(&insert, &[&index, &round, &format!("{index}-{round}")]).unwrap();
            transaction.commit().unwrap();
            let row = client
                .query_one("SELECT text FROM numbers WHERE fiber = $1 AND round = $2", &[&index, &round]);
            assert_eq!(row.unwrap().get::<_, String>(0), format!("{index}-{round}"));
        }
        // Whoever has the lock of a pair sleeps in the server while the other fiber waits for the lock.
        let pair = i64::from(index / 2);
        client.execute("SELECT pg_advisory_lock($1)", &[&pair]).unwrap();
        client.execute("SELECT pg_sleep(0.1)", &[]).unwrap();
        client.execute("SELECT pg_advisory_unlock($1)", &[&pair]).unwrap();
        member.meet();
        let count: i64 = client.query_one("SELECT count(*) FROM numbers", &[]).unwrap().get(0);
        assert_eq!(count, FIBERS as i64 * 3);
    });
}

#[test]
fn mysql_queries_prepared_statements_and_locks() {
    use mysql::prelude::Queryable;
    let Some(server) = Server::mariadb() else { return };
    let options = mysql::OptsBuilder::new()
        .ip_or_hostname(Some("127.0.0.1"))
        .tcp_port(server.address().port())
        .user(Some("root"))
        .prefer_socket(false);
    crowd::run("mysql", FIBERS, move |member| {
        let mut connection = mysql::Conn::new(options.clone()).unwrap();
        if member.index == 0 {
            connection.query_drop("CREATE DATABASE compat").unwrap();
            connection
                .query_drop("CREATE TABLE compat.numbers (fiber int, round int, text varchar(40))")
                .unwrap();
        }
        member.meet();
        let insert = connection.prep("INSERT INTO compat.numbers VALUES (?, ?, ?)").unwrap();
        for round in 0..3 {
            let text = format!("{}-{round}", member.index);
            connection.exec_drop(&insert, (member.index, round, &text)).unwrap();
            let query = "SELECT text FROM compat.numbers WHERE fiber = ? AND round = ?";
            let found: Option<String> = connection.exec_first(query, (member.index, round)).unwrap();
            assert_eq!(found, Some(text));
        }
        let lock = format!("pair {}", member.index / 2);
        let got: Option<u8> = connection.exec_first("SELECT GET_LOCK(?, 100)", (&lock,)).unwrap();
        assert_eq!(got, Some(1));
        connection.query_drop("DO SLEEP(0.1)").unwrap();
        connection.exec_drop("DO RELEASE_LOCK(?)", (&lock,)).unwrap();
        member.meet();
        let count: Option<usize> = connection.query_first("SELECT count(*) FROM compat.numbers").unwrap();
        assert_eq!(count, Some(FIBERS * 3));
    });
}
