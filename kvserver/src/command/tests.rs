//! Each command: what it does, what it answers, and the texts of its errors.

use super::*;

/// A store with a settable clock, driven by command lines. Words are separated by single spaces; `''` is
/// empty.
struct Client {
    store: Store,
    now_ms: u64,
}

impl Client {
    fn new() -> Self {
        Self { store: Store::new(1), now_ms: 1_000_000 }
    }

    fn words(line: &str) -> Vec<Bytes> {
        line.split(' ')
            .map(|word| if word == "''" { Bytes::new() } else { Bytes::copy_from_slice(word.as_bytes()) })
            .collect()
    }

    /// Executes a line as the server does: validated first.
    fn run(&mut self, line: &str) -> Reply {
        let arguments = Self::words(line);
        if let Err(reply) = validate(&arguments, &Limits::DEFAULT) {
            let context = self.context();
            assert_eq!(
                execute(&mut self.store, &context, &arguments),
                reply,
                "what validation refuses, execution refuses alike"
            );
            return reply;
        }
        let context = self.context();
        let expected = (find(&arguments).unwrap().kind() == Kind::Read)
            .then(|| query(&self.store, &context, &arguments));
        let reply = execute(&mut self.store, &context, &arguments);
        assert!(expected.is_none_or(|expected| expected == reply), "a read answers alike either way");
        reply
    }

    fn context(&self) -> Context {
        Context { now_ms: self.now_ms, value_bytes_max: 1000 }
    }

    /// Checks a session of `line => reply` rows, the reply written as [`show`] does.
    fn check(&mut self, session: &str) {
        for row in session.lines().map(str::trim).filter(|row| !row.is_empty()) {
            if let Some(ms) = row.strip_prefix("wait ") {
                self.now_ms += ms.parse::<u64>().unwrap();
                continue;
            }
            let (line, expected) = row.split_once(" => ").expect("a row is `line => reply`");
            assert_eq!(show(&self.run(line.trim())).trim_end(), expected.trim(), "{line}");
        }
    }
}

fn check(session: &str) {
    Client::new().check(session);
}

/// As `redis-cli` would print it, roughly.
fn show(reply: &Reply) -> String {
    match reply {
        Reply::Status(text) => text.to_string(),
        Reply::Error(text) => format!("-{text}"),
        Reply::Integer(number) => number.to_string(),
        Reply::Bulk(bytes) => format!("\"{}\"", String::from_utf8_lossy(bytes)),
        Reply::Nil => "nil".into(),
        Reply::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Reply::Map(pairs) => format!(
            "{{{}}}",
            pairs
                .iter()
                .map(|(key, value)| format!("{}: {}", show(key), show(value)))
                .collect::<Vec<_>>()
                .join(" ")
        ),
    }
}

#[test]
fn the_table_is_sorted_so_that_it_can_be_searched() {
    assert!(table().is_sorted_by(|a, b| a.name < b.name));
    for spec in table() {
        assert!(spec.name.bytes().all(|byte| byte.is_ascii_lowercase()));
        assert!(std::ptr::eq(super::spec(spec.name.to_uppercase().as_bytes()).unwrap(), spec));
        // No parser may look at an argument that the arity does not promise.
        let fewest = vec![Bytes::from_static(spec.name.as_bytes()); spec.arity.unsigned_abs() as usize];
        let _ = validate(&fewest, &Limits::DEFAULT);
    }
}

#[test]
fn unknown_commands_and_wrong_arities() {
    check(
        "foo => -ERR unknown command 'foo', with args beginning with:
         Foo a b => -ERR unknown command 'Foo', with args beginning with: 'a' 'b'
         '' => -ERR unknown command '', with args beginning with:
         get => -ERR wrong number of arguments for 'get' command
         GeT a b => -ERR wrong number of arguments for 'get' command
         set a => -ERR wrong number of arguments for 'set' command
         mget => -ERR wrong number of arguments for 'mget' command
         dbsize x => -ERR wrong number of arguments for 'dbsize' command",
    );
    assert_eq!(show(&find(&[]).err().unwrap()), "-ERR unknown command '', with args beginning with: ");
    let long = Client::words(&format!("{} {}", "n".repeat(200), "a".repeat(200)));
    let expected = format!(
        "-ERR unknown command '{}', with args beginning with: '{}' ",
        "n".repeat(128),
        "a".repeat(128)
    );
    assert_eq!(show(&find(&long).err().unwrap()), expected);
}

#[test]
fn commands_of_the_connection_do_not_reach_the_store() {
    let mut client = Client::new();
    let context = client.context();
    let ping = Client::words("ping");
    let refused = "-ERR 'ping' is not a command of the store";
    assert_eq!(show(&execute(&mut client.store, &context, &ping)), refused);
    assert_eq!(show(&query(&client.store, &context, &ping)), refused);
    assert_eq!(show(&query(&client.store, &context, &Client::words("set a 1"))), "-ERR 'set' is not a read");
}

#[test]
fn set_and_get() {
    check(
        "get a => nil
         set a 1 => OK
         get a => \"1\"
         set a '' => OK
         get a => \"\"
         set '' x => OK
         get '' => \"x\"
         set a 1 foo => -ERR syntax error
         set a 1 nx xx => -ERR syntax error
         set a 1 xx nx => -ERR syntax error",
    );
}

#[test]
fn set_with_conditions() {
    check(
        "set a 1 xx => nil
         get a => nil
         set a 1 nx => OK
         set a 2 NX => nil
         get a => \"1\"
         set a 2 XX => OK
         get a => \"2\"
         set a 3 get => \"2\"
         set b 1 get => nil
         set a 4 nx get => \"3\"
         get a => \"3\"
         set c 1 nx get => nil
         get c => \"1\"
         set d 1 xx get => nil
         get d => nil",
    );
}

#[test]
fn set_with_an_expiry() {
    check(
        "set a 1 ex 10 => OK
         pttl a => 10000
         set a 1 px 1500 => OK
         pttl a => 1500
         set a 2 keepttl => OK
         pttl a => 1500
         set a 3 => OK
         pttl a => -1
         set a 1 exat 1005 => OK
         pttl a => 5000
         set a 1 pxat 1000007 => OK
         pttl a => 7
         wait 7
         get a => nil
         set a 1 keepttl => OK
         pttl a => -1
         set a 1 pxat 5 => OK
         get a => nil
         set a 1 ex 0 => -ERR invalid expire time in 'set' command
         set a 1 px -1 => -ERR invalid expire time in 'set' command
         set a 1 exat 0 => -ERR invalid expire time in 'set' command
         set a 1 ex 9223372036854775807 => -ERR invalid expire time in 'set' command
         set a 1 px 9223372036854775807 => -ERR invalid expire time in 'set' command
         set a 1 ex x => -ERR value is not an integer or out of range
         set a 1 ex 1.5 => -ERR value is not an integer or out of range
         set a 1 ex => -ERR syntax error
         set a 1 ex 1 px 1 => -ERR syntax error
         set a 1 ex 1 keepttl => -ERR syntax error
         set a 1 keepttl ex 1 => -ERR syntax error
         get a => nil",
    );
}

#[test]
fn the_older_forms_of_set() {
    check(
        "setnx a 1 => 1
         setnx a 2 => 0
         get a => \"1\"
         setex a 10 2 => OK
         ttl a => 10
         setex a 0 2 => -ERR invalid expire time in 'setex' command
         setex a x 2 => -ERR value is not an integer or out of range
         psetex a 1500 3 => OK
         pttl a => 1500
         psetex a -5 3 => -ERR invalid expire time in 'psetex' command
         getset a 4 => \"3\"
         ttl a => -1
         getset b 1 => nil
         getdel b => \"1\"
         getdel b => nil
         exists b => 0",
    );
}

#[test]
fn append_and_strlen() {
    check(
        "append a x => 1
         append a yz => 3
         get a => \"xyz\"
         strlen a => 3
         strlen b => 0
         set e 1 px 10 => OK
         append e 2 => 2
         pttl e => 10
         wait 10
         append e 3 => 1
         get e => \"3\"
         ttl e => -1",
    );
    let mut client = Client::new();
    client.run(&format!("set a {}", "x".repeat(990)));
    assert_eq!(client.run("append a 0123456789"), Reply::Integer(1000));
    assert_eq!(
        show(&client.run("append a x")),
        "-ERR value is 1001 bytes, the limit is 1000 (value_bytes_max)"
    );
    assert_eq!(client.run("strlen a"), Reply::Integer(1000));
}

#[test]
fn counters() {
    check(
        "incr a => 1
         incrby a 41 => 42
         decr a => 41
         decrby a 50 => -9
         incrby a -1 => -10
         get a => \"-10\"
         set t 5 px 100 => OK
         incr t => 6
         pttl t => 100
         wait 100
         incr t => 1
         ttl t => -1
         set s abc => OK
         incr s => -ERR value is not an integer or out of range
         set s 01 => OK
         incr s => -ERR value is not an integer or out of range
         set s '' => OK
         incr s => -ERR value is not an integer or out of range
         incrby a x => -ERR value is not an integer or out of range
         incrby a 9223372036854775808 => -ERR value is not an integer or out of range
         decrby a -9223372036854775808 => -ERR decrement would overflow
         set m 9223372036854775807 => OK
         incr m => -ERR increment or decrement would overflow
         get m => \"9223372036854775807\"
         set m -9223372036854775808 => OK
         decr m => -ERR increment or decrement would overflow
         incr m => -9223372036854775807",
    );
}

#[test]
fn many_keys_at_once() {
    check(
        "mset a 1 b 2 => OK
         mget a x b a => [\"1\" nil \"2\" \"1\"]
         mset a => -ERR wrong number of arguments for 'mset' command
         mset a 1 b => -ERR wrong number of arguments for 'mset' command
         mset a 1 a 2 => OK
         get a => \"2\"
         msetnx a 9 c 3 => 0
         mget a c => [\"2\" nil]
         msetnx c 3 d 4 => 1
         msetnx c => -ERR wrong number of arguments for 'msetnx' command
         msetnx c 1 d => -ERR wrong number of arguments for 'msetnx' command
         exists a b c d x a => 5
         del a x a => 1
         unlink b c => 2
         dbsize => 1
         set e 1 px 5 => OK
         mset e 2 => OK
         ttl e => -1",
    );
}

#[test]
fn a_key_past_its_expiry_does_not_exist_for_any_command() {
    check(
        "mset a 1 b 1 c 1 d 1 e 1 f 1 => OK
         pexpire a 10 => 1
         wait 9
         get a => \"1\"
         wait 1
         get a => nil
         exists a => 0
         strlen a => 0
         type a => none
         ttl a => -2
         expire a 10 => 0
         persist a => 0
         dbsize => 5
         keys a => []
         scan 0 match a => [\"0\" []]
         set a 1 xx => nil
         getdel a => nil
         del a => 0
         setnx a 2 => 1
         ttl a => -1",
    );
}

#[test]
fn expire_and_its_conditions() {
    check(
        "expire a 10 => 0
         set a 1 => OK
         expire a 10 => 1
         ttl a => 10
         pexpire a 1499 => 1
         ttl a => 1
         pttl a => 1499
         pexpire a 1500 => 1
         ttl a => 2
         expireat a 1100 => 1
         expiretime a => 1100
         pexpireat a 1100499 => 1
         pexpiretime a => 1100499
         expiretime a => 1100
         expiretime x => -2
         expire a 5 nx => 0
         persist a => 1
         persist a => 0
         expiretime a => -1
         pexpiretime a => -1
         expire a 5 xx => 0
         expire a 5 gt => 0
         expire a 5 lt => 1
         expire a 5 lt => 0
         expire a 4 lt => 1
         expire a 4 gt => 0
         expire a 6 GT => 1
         expire a 7 xx gt => 1
         expire a 6 xx lt => 1
         ttl a => 6
         expire a 1 nx xx => -ERR NX and XX, GT or LT options at the same time are not compatible
         expire a 1 lt nx => -ERR NX and XX, GT or LT options at the same time are not compatible
         expire a 1 gt lt => -ERR GT and LT options at the same time are not compatible
         expire a 1 foo => -ERR Unsupported option foo
         expire a x => -ERR value is not an integer or out of range
         expire a 9223372036854775807 => -ERR invalid expire time in 'expire' command
         expireat a -9223372036854775808 => -ERR invalid expire time in 'expireat' command
         pexpire a 9223372036854775807 => -ERR invalid expire time in 'pexpire' command
         pexpireat a 9223372036854775807 => 1
         pttl a => 9223372036853775807
         expire a 0 => 1
         exists a => 0",
    );
}

#[test]
fn an_expiry_in_the_past_removes_the_key() {
    check(
        "mset a 1 b 1 c 1 d 1 => OK
         expire a -1 => 1
         pexpireat b 999999 => 1
         pexpireat c 1000000 => 1
         pexpireat d -9223372036854775808 => 1
         dbsize => 0",
    );
}

#[test]
fn scan_and_keys() {
    check(
        "scan 0 => [\"0\" []]
         mset key:1 a key:2 b other c => OK
         keys other => [\"other\"]
         keys nothing* => []
         scan 0 match ot?er count 100 => [\"0\" [\"other\"]]
         scan 0 type hash count 100 => [\"0\" []]
         scan 0 MATCH other TYPE string COUNT 100 => [\"0\" [\"other\"]]
         scan x => -ERR invalid cursor
         scan -1 => -ERR invalid cursor
         scan +1 => -ERR invalid cursor
         scan '' => -ERR invalid cursor
         scan 18446744073709551616 => -ERR invalid cursor
         scan 18446744073709551615 => [\"0\" []]
         scan 0 count 0 => -ERR syntax error
         scan 0 count x => -ERR value is not an integer or out of range
         scan 0 count => -ERR syntax error
         scan 0 foo 1 => -ERR syntax error",
    );
    let mut client = Client::new();
    client.run("mset key:1 a key:2 b other c");
    let Reply::Array(keys) = client.run("keys key:*") else { panic!("KEYS answers an array") };
    let mut keys: Vec<String> = keys.iter().map(show).collect();
    keys.sort();
    assert_eq!(keys, ["\"key:1\"", "\"key:2\""]);
}

#[test]
fn the_database_as_a_whole() {
    check(
        "dbsize => 0
         randomkey => nil
         set a 1 => OK
         randomkey => \"a\"
         type a => string
         type b => none
         flushall foo => -ERR syntax error
         flushall async sync => -ERR syntax error
         dbsize => 1
         flushall => OK
         dbsize => 0
         set a 1 => OK
         flushdb ASYNC => OK
         set a 1 => OK
         flushall sync => OK
         dbsize => 0",
    );
}

#[test]
fn set_if_equal() {
    check(
        "set a 1 ifeq 1 => nil
         set a 1 => OK
         set a 2 ifeq 1 => OK
         set a 3 ifeq 1 => nil
         set a 3 ifeq 2 get => \"2\"
         set a 4 ifeq 2 get => \"3\"
         get a => \"3\"
         set a 5 ifeq 3 nx => -ERR syntax error
         set a 5 xx ifeq 3 => -ERR syntax error
         set a 5 ifeq => -ERR syntax error
         delifeq a 2 => 0
         delifeq a 3 => 1
         delifeq a 3 => 0",
    );
}

#[test]
fn compare_and_set_and_delete_by_value() {
    check(
        "cas a 1 2 => -1
         set a 1 ex 10 => OK
         cas a 0 2 => 0
         cas a 1 2 => 1
         ttl a => -1
         cas a 2 3 px 500 => 1
         pttl a => 500
         cas a 3 4 keepttl => 1
         pttl a => 500
         cas a 4 5 nx => -ERR syntax error
         cad a 9 => 0
         cad a 4 => 1
         cad a 4 => -1
         set b 1 px 5 => OK
         wait 5
         cas b 1 2 => -1
         cad b 1 => -1",
    );
}

#[test]
fn versions_count_every_change_and_never_come_back() {
    check(
        "revision => 0
         version a b => [0 0]
         exset a 1 withversion => 1
         exget a => [\"1\" 1]
         exget b => nil
         exset a 2 ver 7 => -ERR update version is stale
         exset a 2 ver 1 withversion => 2
         exset a 3 nx => nil
         exset a 3 nx withversion => nil
         exset a 3 xx => OK
         exset b 1 ver 9 => OK
         version a b c => [3 4 0]
         excas a 4 2 => [CAS_FAILED \"3\" 3]
         excas a 4 3 => [OK \"\" 5]
         excas c 4 3 => -1
         excad a 3 => 0
         excad a 5 => 1
         excad a 5 => -1
         revision => 6
         set a 1 => OK
         exget a => [\"1\" 7]
         append a 2 => 2
         version a => [8]
         expire a 100 => 1
         version a => [9]
         persist a => 1
         incr a => 13
         version a => [11]
         mset a 1 b 2 => OK
         version a b => [12 13]
         get a => \"1\"
         set a 1 nx => nil
         del c => 0
         revision => 13
         flushall => OK
         revision => 14
         set a 1 => OK
         version a => [15]
         exset a 1 ver x => -ERR value is not an integer or out of range
         exset a 1 ver => -ERR syntax error
         exset a 1 get => -ERR syntax error
         set a 1 ver 3 => -ERR syntax error",
    );
}

#[test]
fn ranges_are_in_the_order_of_bytes() {
    check(
        "range - + => [nil []]
         mset a 1 ab 2 abc 3 b 4 c 5 => OK
         set d 6 px 5 => OK
         wait 5
         range - + => [nil [\"a\" \"1\" \"ab\" \"2\" \"abc\" \"3\" \"b\" \"4\" \"c\" \"5\"]]
         range - + keysonly limit 2 => [\"(ab\" [\"a\" \"ab\"]]
         range (ab + keysonly limit 2 => [\"(b\" [\"abc\" \"b\"]]
         range (b + keysonly limit 2 => [nil [\"c\"]]
         range [ab (b => [nil [\"ab\" \"2\" \"abc\" \"3\"]]
         range [ab [b withversions keysonly => [nil [\"ab\" 2 \"abc\" 3 \"b\" 4]]
         range + - rev keysonly limit 2 => [\"(b\" [\"c\" \"b\"]]
         range (b - rev keysonly => [nil [\"abc\" \"ab\" \"a\"]]
         range [c [a => [nil []]
         range (b (b => [nil []]
         range [b [b => [nil [\"b\" \"4\"]]
         prefix ab => [nil [\"ab\" \"2\" \"abc\" \"3\"]]
         prefix ab keysonly limit 1 => [\"(ab\" [\"ab\"]]
         prefix ab from (ab keysonly => [nil [\"abc\"]]
         prefix ab from [a keysonly => [nil [\"ab\" \"abc\"]]
         prefix ab from - keysonly => [nil [\"ab\" \"abc\"]]
         prefix ab from [b keysonly => [nil []]
         prefix '' keysonly limit 1 => [\"(a\" [\"a\"]]
         range a + => -ERR a bound of a range is - or + for no bound, [key for the key and what follows, or (key for what follows it
         range - + limit 0 => -ERR LIMIT must be positive
         range - + limit => -ERR syntax error
         prefix a rev => -ERR syntax error",
    );
}

#[test]
fn a_transaction_is_executed_whole_or_not_at_all() {
    check(
        "transaction 0 3 set a 1 2 incr a 2 get b => [OK 2 nil]
         version a => [2]
         transaction 1 a 2 2 incr a => [3]
         transaction 1 a 2 2 incr a => nil
         transaction 2 a 3 b 0 4 mset a 1 b 1 => -ERR syntax error
         transaction 1 a x => -ERR value is not an integer or out of range
         transaction 1 a -1 => -ERR syntax error
         transaction 2 a 3 b 0 5 mset a 1 b 1 => [OK]
         transaction 2 a 4 b 0 2 incr a => nil
         transaction 1 a 4 => []
         get a => \"1\"
         transaction 0 2 incr => -ERR syntax error
         transaction 0 1 incr => -ERR wrong number of arguments for 'incr' command
         transaction 0 2 ping a => -ERR a transaction consists of reads and writes of keys
         transaction 0 4 transaction 0 1 dbsize => -ERR a transaction consists of reads and writes of keys
         transaction -1 a => -ERR syntax error
         transaction 9223372036854775807 a => -ERR syntax error
         transaction 0 3 set a 1 2 incr a 3 append a b => [OK 2 2]
         transaction 0 2 incr a 2 del a => [-ERR value is not an integer or out of range 1]",
    );
}

#[test]
fn what_may_make_the_store_larger() {
    let may_grow = |line: &str| super::may_grow(&Client::words(line));
    for line in ["set a 1", "append a b", "mset a 1", "cas a 1 2", "transaction 0 2 del a 2 incr a", "incr a"]
    {
        assert!(may_grow(line), "{line}");
    }
    for line in
        ["del a", "expire a 1", "get a", "flushall", "cad a 1", "transaction 0 2 del a 2 get a", "ping"]
    {
        assert!(!may_grow(line), "{line}");
    }
    // Whoever adds a write decides which it is.
    let writes = table().iter().filter(|spec| spec.kind() == Kind::Write);
    assert_eq!(writes.count(), 30);
}

#[test]
fn limits_on_keys_and_values() {
    let limits = Limits { key_bytes_max: 3, value_bytes_max: 5, request_bytes_max: 1000 };
    let check = |line: &str, expected: Option<&str>| {
        let result = validate(&Client::words(line), &limits).err().map(|reply| show(&reply));
        assert_eq!(result.as_deref(), expected, "{line}");
    };
    check("set abc 12345", None);
    check("set abcd 1", Some("-ERR key is 4 bytes, the limit is 3 (key_bytes_max)"));
    check("set a 123456", Some("-ERR value is 6 bytes, the limit is 5 (value_bytes_max)"));
    check("mset a 1234 b 1234", None);
    check("mset a 1234 bbbb 1234", Some("-ERR key is 4 bytes, the limit is 3 (key_bytes_max)"));
    check("del a b cccc", Some("-ERR key is 4 bytes, the limit is 3 (key_bytes_max)"));
    check("echo 12345", None);
    let refusal = |name: &'static str, argument, bytes| {
        show(&refusal_reply(&Refusal { name: Bytes::from(name), argument, bytes }, &limits))
    };
    assert_eq!(refusal("GET", Some(1), 9), "-ERR key is 9 bytes, the limit is 3 (key_bytes_max)");
    assert_eq!(refusal("SET", Some(2), 9), "-ERR value is 9 bytes, the limit is 5 (value_bytes_max)");
    assert_eq!(
        refusal("MSET", None, 1001),
        "-ERR request is at least 1001 bytes, the limit is 1000 (request_bytes_max)"
    );
}
