use std::collections::BTreeSet;
use std::net::IpAddr;

use testudo_observability::metrics::{By, MAX_SERIES};
use testudo_transport::Who;

use super::*;

/// Invariant 1, on what an export is made of: ten thousand nodes of each role, and as many addresses, refused for every cause.
#[test]
fn a_flood_of_names_makes_no_more_series_than_causes_and_roles() {
    let refusals = Refusals::default();
    for n in 0..10_000_u32 {
        for cause in Cause::ALL {
            refusals.count(*cause, Who::address(IpAddr::from(n.to_be_bytes())));
            refusals.count(*cause, Who::member(Role::ALL[n as usize % Role::ALL.len()], n));
        }
    }
    let by = (CAUSE, ROLE);
    let totals = refusals.totals_by_role();
    let series: BTreeSet<String> =
        totals.keys().map(|value| format!("{:?}", by.attributes(*value).unwrap())).collect();
    let most = Cause::ALL.len() * (Role::ALL.len() + 1);
    assert_eq!((series.len(), totals.len()), (most, most));
    assert!(most <= MAX_SERIES);
    assert_eq!(totals.values().sum::<u64>(), 20_000 * Cause::ALL.len() as u64, "none is lost");
    assert!(series.iter().all(|attributes| !attributes.contains('/') && !attributes.contains("0.0.")));
}

#[test]
fn a_process_has_memory_in_use() {
    let bytes = resident().unwrap();
    assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
}
