//! Attackers in Python that do parts of one thing at the same time: most of a connection's time is waiting.

use serde_json::Value;
use testudo_tests::attacker::Attacker;

/// So many processes, with addresses of their own.
pub(crate) struct Crowd(Vec<Attacker>);

impl Crowd {
    /// Starts them; `None` if there is no interpreter for them and none is required.
    pub(crate) fn start(attackers: usize) -> Option<Crowd> {
        (0..attackers).map(|_| Attacker::start()).collect::<Option<Vec<Attacker>>>().map(Crowd)
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Has every one do `attack` as `order` says, given its place; what came of each.
    pub(crate) fn attack(&self, attack: &str, order: impl Fn(usize) -> Value) -> Vec<Value> {
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..)
                .zip(&self.0)
                .map(|(nth, attacker)| {
                    let mut order = order(nth);
                    order["network"] = (100 + nth).into();
                    scope.spawn(move || attacker.attack(attack, order))
                })
                .collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}
