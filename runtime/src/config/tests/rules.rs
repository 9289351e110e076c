//! What keys ask of each other: what cannot work together is said, and what can is let through.

use super::*;

#[test]
fn rules_between_keys() {
    for (overrides, expected) in [
        (&["cluster.workers=5"][..], "the workers beyond that would idle"),
        (&["training.batch_size=2"], "use for instance 4"),
        (&["transport.slice_bytes=1022"], "use for instance 1020"),
        (&["transport.slice_bytes=131072", "transport.max_in_flight_bytes=65536"], "use at least 180224"),
        (&["cluster.heartbeat_timeout_ms=900"], "use at least 1000"),
        (&["transport.idle_timeout_ms=999"], "use at least 1000"),
        (&["security.ca=x"], "`security.cert` and `security.key` is missing"),
        (&["network.servers.listen=[\"127.0.0.1:1\", \"127.0.0.1:2\"]"], "2 addresses for 1 servers"),
        (
            &["network.listen=127.0.0.1:7000"],
            "the scheduler and server 0 would both listen on 127.0.0.1:7000",
        ),
        (&["network.listen=0.0.0.0:7000"], "nobody can dial that"),
        (&["limits.memory_mib=64"], "a scheduler of this job takes"),
        (&["network.allow=[\"10.0.0.0/8\"]"], "leaves out 127.0.0.1"),
        (&["network.allow=[\"10.0.0.1/8\"]"], "10.0.0.0/8 is meant"),
        (&["network.scheduler.listen=[::]:7000"], "nobody can dial that"),
    ] {
        let found = messages(MINIMAL, overrides);
        assert_eq!(found.len(), 1, "{overrides:?}: {found:?}");
        assert!(found[0].contains(expected), "{overrides:?}: {found:?}");
    }
    for overrides in [
        &["cluster.workers=4"][..],
        &[
            "network.listen=0.0.0.0:7000",
            "network.scheduler.advertise=s:7000",
            "network.servers.advertise=[\"a:7000\"]",
        ],
        &["network.scheduler.listen=127.0.0.1:7000"],
        &["cluster.heartbeat_timeout_ms=1000", "transport.idle_timeout_ms=1000"],
    ] {
        assert_eq!(messages(MINIMAL, overrides), [""; 0], "{overrides:?}");
    }
}

/// Networks for images: their sizes are read, and said to be wrong where they are.
#[test]
fn networks_for_images_say_their_sizes() {
    let (image, classes) = ([1, 28, 28], 10);
    assert_eq!(parse(IMAGES, &[]).unwrap().model, Model::Cnn { image, classes, label_smoothing: 0.0 });
    let config =
        parse(IMAGES, &["model.kind=resnet18", "model.image=[3, 5, 7]", "model.label_smoothing=0.1"])
            .unwrap();
    assert_eq!(config.model, Model::ResNet18 { image: [3, 5, 7], classes, label_smoothing: 0.1 });
    assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    for (overrides, expected) in [
        (&["model.image=[28, 28]"][..], "`model.image` has 2 numbers"),
        (&["model.image=[1, 28, 5]"], "sides from 6 to"),
        (&["model.image=[1, 28, 0]"], "`model.image[2]`"),
        (&["model.image=[1, 2, 3, 4]"], "`model.image`"),
        (&["model.inputs=784"], "`model.inputs`"),
        (&["limits.memory_mib=150"], "use at least"),
    ] {
        let found = messages(IMAGES, overrides);
        assert_eq!(found.len(), 1, "{overrides:?}: {found:?}");
        assert!(found[0].contains(expected), "{overrides:?}: {found:?}");
    }
}

/// Robust rules: what cannot work, and what can.
#[test]
fn rules_that_cannot_outvote_are_refused() {
    const MEDIAN: &str = "training.aggregation=median";
    const TRIMMED: &str = "training.aggregation=trimmed_mean";
    for (overrides, expected) in [
        (&[MEDIAN, "training.logical_shards=1"][..], "1 workers cannot outvote 1"),
        (
            &[TRIMMED, "cluster.workers=4", "training.hostile_workers=2"],
            "at least 5 workers, or say at most 1",
        ),
        (&[MEDIAN, "cluster.workers=3"], "`training.logical_shards` is 4 for 3 workers: set it to 3"),
        (&[MEDIAN, "cluster.workers=5"], "the workers beyond that would idle"),
        (&[MEDIAN, "cluster.workers=4", "training.hostile_workers=0"], "from 1 to"),
        (&["training.hostile_workers=1"], "`training.hostile_workers`"),
        (&["training.aggregation=bulyan"], "`training.aggregation`"),
        (&["training.aggregation=krum", "cluster.workers=4"], "use at least 5 workers"),
        (
            &["training.aggregation=multi_krum", "cluster.workers=4", "training.hostile_workers=2"],
            "use at least 7 workers",
        ),
        (&["training.aggregation=norm_bound", "cluster.workers=4"], "`training.norm_bound`"),
        (&["training.aggregation=centred_clipping", "cluster.workers=4"], "`training.clip_radius`"),
        (&["training.clip_norm=0"], "`training.clip_norm`"),
        (
            &[
                "training.aggregation=krum",
                "cluster.workers=129",
                "training.logical_shards=129",
                "training.batch_size=129",
            ],
            "128 workers at most",
        ),
        (
            &[MEDIAN, "cluster.workers=4", "model.hidden=[8192, 8192]", "limits.memory_mib=900"],
            "(1124 MiB being kept for votes)",
        ),
        (
            &[MEDIAN, "cluster.workers=1025", "training.logical_shards=1025", "training.batch_size=1025"],
            "1024 workers at most",
        ),
    ] {
        let found = messages(MINIMAL, overrides);
        assert_eq!(found.len(), 1, "{overrides:?}: {found:?}");
        assert!(found[0].contains(expected), "{overrides:?}: {found:?}");
    }
    let good = ["cluster.workers=4", MEDIAN, "limits.memory_mib=2048", "model.hidden=[1024]"];
    assert_eq!(messages(MINIMAL, &good), [""; 0]);
    let config = parse(MINIMAL, &[TRIMMED, "cluster.workers=4"]).unwrap();
    assert_eq!(config.training.aggregation, Aggregation::TrimmedMean { hostile_workers: 1 });
    let again = parse(&config.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(again, config);
}

/// Votes are taken from what peers may occupy, so that the limit holds for both together.
#[test]
fn votes_are_part_of_the_memory_that_is_limited() {
    let shares = |overrides: &[&str]| {
        let config = parse(MINIMAL, &[&["cluster.workers=4", "limits.memory_mib=1024"], overrides].concat());
        config.unwrap().shares(Role::Server, 0).memory
    };
    // 784 x 512 + 512 x 512 + 512 x 10 weights and 1,034 biases, on one server: four votes, instead of two sums.
    let bytes = (784 * 512 + 512 * 512 + 512 * 10 + 1034) * 4;
    let room = 2 * bytes;
    assert_eq!(shares(&[]) - shares(&["training.aggregation=median"]), room - room / 8);
}
