//! Workers beyond those that a job begins with: what is possible, and what it takes.

use super::*;

#[test]
fn more_workers_are_possible_where_there_is_work_for_them_and_nobody_votes() {
    for (overrides, expected) in [
        (&["cluster.max_workers=1", "cluster.workers=2"][..], "the job begins with more than it may have"),
        (&["cluster.max_workers=5"], "the workers beyond that would idle"),
        (
            &[
                "cluster.max_workers=4",
                "cluster.workers=3",
                "training.aggregation=median",
                "training.logical_shards=3",
                "training.batch_size=3",
            ],
            "has a vote from the beginning",
        ),
        (&["cluster.max_workers=4", "cluster.placement=colocated"], "leave it out"),
    ] {
        let found = messages(MINIMAL, overrides);
        assert!(found.iter().any(|message| message.contains(expected)), "{overrides:?}: {found:?}");
    }
    let config = parse(MINIMAL, &["cluster.max_workers=3"]).unwrap();
    assert_eq!((config.cluster.workers, config.cluster.most_workers()), (1, 3));
}

/// Memory and places are shared out for all that may come.
#[test]
fn what_is_limited_is_shared_out_for_all_that_may_come() {
    let least = |max: &str| {
        let config = parse(MINIMAL, &[&format!("cluster.max_workers={max}"), "limits.memory_mib=64"]);
        config.unwrap_err().to_string()
    };
    let takes = |text: String| -> u64 {
        let at =
            text.find("a scheduler of this job takes ").unwrap() + "a scheduler of this job takes ".len();
        text[at..].split(':').next().unwrap().parse().unwrap()
    };
    assert!(takes(least("4")) > takes(least("1")));
}
