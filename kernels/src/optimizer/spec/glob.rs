//! Patterns of parameters' names: `*` stands for any characters, `?` for one, everything else for itself.

/// The longest pattern, in bytes.
pub const MAX_PATTERN: usize = 128;

/// Whether `name` is of `pattern`. Takes time in proportion to the product of their lengths at most.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut from) = (0, 0);
    // The last star, and up to where the name is given to it.
    let mut star = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || *c == name[from] => (at, from) = (at + 1, from + 1),
            _ => {
                let Some((place, taken)) = star else { return false };
                (at, from) = (place + 1, taken + 1);
                star = Some((place, taken + 1));
            }
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("*.bias", "fc1.bias", true),
            ("*.bias", "fc1.bias.scale", false),
            ("*norm*", "h.0.norm1.weight", true),
            ("*norm*", "norm", true),
            ("h.?.ln", "h.3.ln", true),
            ("h.?.ln", "h.33.ln", false),
            ("*a*b", "aab", true),
            ("*a*b", "abaa", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**?", "é", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    fn plain(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=name.len()).any(|taken| plain(rest, &name[taken..])),
            (Some((c, rest)), Some((n, name))) => (*c == '?' || c == n) && plain(rest, name),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// As read out plainly.
        #[test]
        fn patterns_mean_what_they_say(pattern in "[ab?*]{0,8}", name in "[ab]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<char>>();
            prop_assert_eq!(matches(&pattern, &name), plain(&chars(&pattern), &chars(&name)));
        }
    }
}
