use super::*;

fn grant(bytes: u64) -> KvGrant {
    KvGrant { bytes, owner: None, of_tenant: false, persist: None }
}

#[test]
fn values_are_set_read_counted_swapped_and_end() {
    let kv = Stores::default().open("p", None, &grant(1 << 20));
    assert_eq!(kv.get("a", 0), None);
    kv.set("a", b"1".to_vec(), Some(10), 5).expect("it fits");
    assert_eq!(kv.get("a", 14), Some(b"1".to_vec()));
    assert_eq!(kv.get("a", 15), None, "its time is over");
    assert_eq!(kv.used(), 0, "and its place is free");

    assert_eq!(kv.increment("n", 2, Some(10), 0), Ok(2));
    assert_eq!(kv.increment("n", 3, Some(10), 9), Ok(5), "a counter's time is from its first");
    assert_eq!(kv.get("n", 9), Some(b"5".to_vec()));
    assert_eq!(kv.increment("n", 1, Some(10), 10), Ok(1), "a new window");
    assert_eq!(kv.increment("n", i64::MAX, None, 10), Ok(i64::MAX), "no overflow");
    kv.set("text", b"x".to_vec(), None, 0).expect("it fits");
    assert_eq!(kv.increment("text", 1, None, 0), Err(Refused::NotANumber));

    assert_eq!(kv.compare_and_swap("c", Some(b"1"), Some(b"2".to_vec()), None, 0), Ok(false));
    assert_eq!(kv.compare_and_swap("c", None, Some(b"1".to_vec()), None, 0), Ok(true));
    assert_eq!(kv.compare_and_swap("c", None, Some(b"3".to_vec()), None, 0), Ok(false));
    assert_eq!(kv.compare_and_swap("c", Some(b"1"), None, None, 0), Ok(true));
    assert_eq!(kv.get("c", 0), None);
    assert!(!kv.delete("c", 0) && kv.delete("text", 0));
}

#[test]
fn a_flood_stays_within_its_bytes_and_drives_out_the_oldest() {
    let kv = Stores::default().open("p", None, &grant(64 * 1024));
    kv.set("kept", b"1".to_vec(), None, 0).expect("it fits");
    for index in 0..5000 {
        kv.set(&format!("key-{index}"), vec![0; 100], None, 0).expect("it fits");
        assert!(kv.used() <= 64 * 1024, "{} bytes after {index}", kv.used());
        assert!(kv.get("kept", 0).is_some(), "what is used stays, after {index}");
    }
    assert_eq!(kv.get("key-0", 0), None);
    assert_eq!(kv.get("key-4999", 0).map(|value| value.len()), Some(100));
    assert!(kv.evicted() > 4000);
    // Of the bytes in use each is accounted for.
    let sum: usize =
        (0..5000).map(|i| format!("key-{i}")).filter(|k| kv.get(k, 0).is_some()).map(|k| k.len() + 228).sum();
    assert_eq!(kv.used() as usize, sum + "kept".len() + 1 + OVERHEAD);
    for index in 0..5000 {
        kv.delete(&format!("key-{index}"), 0);
    }
    kv.delete("kept", 0);
    assert_eq!(kv.used(), 0);
}

#[test]
fn what_could_never_fit_is_refused() {
    let kv = Stores::default().open("p", None, &grant(1024));
    assert_eq!(kv.set("a", vec![0; 1024], None, 0), Err(Refused::TooLarge));
    assert_eq!(kv.set(&"k".repeat(MAX_KEY + 1), vec![], None, 0), Err(Refused::TooLarge));
    assert_eq!(kv.compare_and_swap("a", None, Some(vec![0; 2000]), None, 0), Err(Refused::TooLarge));
    kv.set("a", vec![0; 800], None, 0).expect("it fits");
    kv.set("b", vec![1; 800], None, 0).expect("it fits where the other goes");
    assert_eq!((kv.get("a", 0).is_some(), kv.get("b", 0).is_some()), (false, true));
}

#[test]
fn nobody_sees_the_entries_of_another() {
    let stores = Stores::default();
    let own = |plugin: &str, tenant: Option<&str>| stores.open(plugin, tenant, &grant(4096));
    let common =
        |plugin: &str, tenant: &str| stores.open(plugin, Some(tenant), &KvGrant { of_tenant: true, ..grant(4096) });
    let all =
        [own("p", None), own("q", None), own("p", Some("a")), own("p", Some("b")), common("p", "a"), common("p", "b")];
    for (index, kv) in all.iter().enumerate() {
        assert_eq!(kv.get("key", 0), None, "{index}");
        kv.set("key", vec![index as u8], None, 0).expect("it fits");
    }
    for (index, kv) in all.iter().enumerate() {
        assert_eq!(kv.get("key", 0), Some(vec![index as u8]));
    }
    assert_eq!(common("q", "a").get("key", 0), Some(vec![4]), "a tenant's plugins share one");
    assert_eq!(own("p", Some("a")).get("key", 0), Some(vec![2]), "and a reload keeps it");
    let of_p = KvGrant { owner: Some("p".to_owned()), ..grant(4096) };
    assert_eq!(stores.open("p@next", Some("a"), &of_p).get("key", 0), Some(vec![2]), "as does another version of it");
    assert_eq!(own("p@next", Some("a")).get("key", 0), None, "unless that has its own");
    drop(all);
    assert_eq!(own("p", None).get("key", 0), None, "what nobody uses is gone");
}

#[test]
fn counters_of_many_threads_lose_nothing() {
    let kv = Stores::default().open("p", None, &grant(1 << 20));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for index in 0..1000 {
                    kv.increment(&format!("n{}", index % 3), 1, None, 0).expect("a number");
                }
            });
        }
    });
    let sum: i64 = (0..3).map(|i| kv.increment(&format!("n{i}"), 0, None, 0).expect("a number")).sum();
    assert_eq!(sum, 4000);
}

#[test]
fn a_database_keeps_what_was_written_and_not_what_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = KvGrant { persist: Some(folder.path().join("kv.redb")), ..grant(1 << 20) };
    let now = crate::host::monotonic();
    {
        let stores = Stores::default();
        let kv = stores.open("p", None, &kept);
        let other = stores.open("q", None, &kept);
        stores.begin().expect("a database");
        kv.set("stays", b"1".to_vec(), None, now).expect("it fits");
        kv.set("has an hour", b"2".to_vec(), Some(3_600_000_000_000), now).expect("it fits");
        kv.set("ended", b"3".to_vec(), Some(1), now).expect("it fits");
        kv.set("deleted", b"4".to_vec(), None, now).expect("it fits");
        other.set("stays", b"5".to_vec(), None, now).expect("it fits");
        stores.finish();
        kv.delete("deleted", now);
        stores.finish();
        // As the end of a process: nothing holds the database any more.
        lock(&stores.journals).drain().for_each(|(_, journal)| lock(&journal.spaces).clear());
        drop((kv, other));
    }
    let stores = Stores::default();
    let kv = stores.open("p", None, &kept);
    assert_eq!(kv.get("stays", now), None, "not before it is begun");
    let begun = (0..100).any(|_| {
        let begun = stores.begin().is_ok();
        if !begun {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        begun
    });
    assert!(begun, "the database is free again");
    let now = crate::host::monotonic();
    assert_eq!(kv.get("stays", now), Some(b"1".to_vec()));
    assert_eq!(kv.get("has an hour", now), Some(b"2".to_vec()));
    assert_eq!(kv.get("has an hour", now + 3_700_000_000_000), None, "its time goes on");
    assert_eq!((kv.get("ended", now), kv.get("deleted", now)), (None, None));
    let nowhere = KvGrant { persist: Some(folder.path().join("no/folder/kv.redb")), ..grant(1024) };
    let _lost = stores.open("r", None, &nowhere);
    assert!(stores.begin().is_err_and(|error| error.to_string().contains("no/folder/kv.redb")));
}
