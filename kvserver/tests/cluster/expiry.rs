//! Expiry is decided once for all replicas.

use crate::harness::{Cluster, Reply, eventually};

#[test]
fn keys_expire_on_every_node_alike() {
    const SHORT: usize = 200;
    let cluster = Cluster::start(&[]);
    let ids = cluster.ids();
    for number in 0..SHORT {
        let mut redis = cluster.redis(ids[number % 3]);
        assert_eq!(redis.call(&["SET", &format!("short {number}"), "v", "PX", "400"]), Reply::ok());
    }
    let mut redis = cluster.redis(1);
    assert_eq!(redis.call(&["SET", "long", "v", "EX", "1000"]), Reply::ok());
    assert_eq!(redis.call(&["SET", "forever", "v"]), Reply::ok());
    assert_eq!(redis.call(&["SET", "kept", "v", "PX", "400"]), Reply::ok());
    assert_eq!(redis.call(&["PERSIST", "kept"]), Reply::Integer(1));
    assert_eq!(redis.call(&["SET", "later", "v"]), Reply::ok());
    assert_eq!(redis.call(&["PEXPIRE", "later", "1000000"]), Reply::Integer(1));
    for node in &ids {
        let mut redis = cluster.redis(*node);
        let left_s = redis.call(&["TTL", "long"]).integer();
        assert!((900..=1000).contains(&left_s), "node {node}: {left_s}");
        let left_ms = redis.call(&["PTTL", "later"]).integer();
        assert!((900_000..=1_000_000).contains(&left_ms), "node {node}: {left_ms}");
        assert_eq!(redis.call(&["TTL", "forever"]), Reply::Integer(-1));
        assert_eq!(redis.call(&["TTL", "kept"]), Reply::Integer(-1));
        assert_eq!(redis.call(&["TTL", "nothing"]), Reply::Integer(-2));
    }
    for node in &ids {
        let mut redis = cluster.redis(*node);
        let last = format!("short {}", SHORT - 1);
        eventually("the last key has expired", || (redis.call(&["GET", &last]) == Reply::Nil).then_some(()));
        assert_eq!(redis.call(&["DBSIZE"]), Reply::Integer(4), "node {node}");
        assert_eq!(redis.call(&["EXISTS", "short 0", "long", "forever", "kept", "later"]), Reply::Integer(4));
    }
    // Nobody writes any more, and still every replica gives the memory back.
    for node in &ids {
        eventually("expired keys are purged", || {
            let figures = (cluster.number(*node, "keys"), cluster.number(*node, "expiring_keys"));
            (figures == (Some(4), Some(2))).then_some(())
        });
    }
    cluster.wait_until_replicas_agree();
}
