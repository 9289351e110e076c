//! For a key that does not exist, the one that was probably meant.

use super::keys;

/// A phrase that helps with the unknown key or section `path`.
///
/// The same name in another section is the best guess, then the name with the fewest typing errors,
/// then the list of what the section does hold.
pub(super) fn advice(path: &str) -> String {
    match nearest(path) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let section = path.rsplit_once('.').map_or("", |(section, _)| section);
            let names: Vec<_> =
                keys::all().filter(|key| key.section() == section).map(|key| key.name()).collect();
            if section == "optimizer" {
                return format!(
                    "[{section}] holds {}, and [optimizer.constants] the program's other constants",
                    names.join(", ")
                );
            }
            if names.is_empty() {
                format!("the sections are {}", sections().join(", "))
            } else {
                format!("[{section}] holds {}", names.join(", "))
            }
        }
    }
}

/// The key or section nearest to `path`, if any is near.
pub(super) fn nearest(path: &str) -> Option<&'static str> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let named = keys::all().filter(|key| !key.is_any_name()).map(|key| {
        let elsewhere = usize::from(key.section() != section);
        let by_name = strsim::damerau_levenshtein(name, key.name()) + elsewhere;
        let by_path = strsim::damerau_levenshtein(path, key.path);
        (by_name.min(by_path), key.path)
    });
    let sections = sections().into_iter().map(|known| (strsim::damerau_levenshtein(path, known), known));
    let (distance, near) = named.chain(sections).min_by_key(|(distance, _)| *distance)?;
    // Half of the letters wrong is no longer a typing error.
    (distance <= (name.chars().count() / 2).clamp(1, 4)).then_some(near)
}

/// Every section, in the order of the table.
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections = Vec::new();
    for key in keys::all() {
        if !sections.contains(&key.section()) {
            sections.push(key.section());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised() {
        for (wrong, right) in [
            ("optimizer.learning_rte", "optimizer.learning_rate"),
            ("optimizer.leraning_rate", "optimizer.learning_rate"),
            ("training.sede", "training.seed"),
            ("training.max_step", "training.max_steps"),
            ("trainig.seed", "training.seed"),
            ("cluster.worker", "cluster.workers"),
            ("model.hiden", "model.hidden"),
            ("trainig", "training"),
            ("optimiser", "optimizer"),
            ("network.schedular", "network.scheduler"),
        ] {
            assert_eq!(nearest(wrong), Some(right), "{wrong}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_section_is_found() {
        assert_eq!(nearest("seed"), Some("training.seed"));
        assert_eq!(nearest("training.workers"), Some("cluster.workers"));
        assert_eq!(nearest("model.learning_rate"), Some("optimizer.learning_rate"));
        assert_eq!(nearest("batch_size"), Some("training.batch_size"));
    }

    #[test]
    fn what_is_far_from_everything_gets_a_list() {
        assert_eq!(nearest("training.quantum_flux_capacity"), None);
        assert!(advice("training.quantum_flux_capacity").contains("batch_size"));
        assert!(advice("zzzzzzzz").contains("sections are job, cluster, network"));
    }
}
