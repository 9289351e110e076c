//! Programs of every shape that the language allows, out of a list of choices.

/// A text that is a program, unless it grew beyond the language's limits. Runs out of choices into leaves.
pub(crate) fn program(choices: &[u8]) -> String {
    let mut maker =
        Maker { choices: choices.iter(), tensors: vec!["w", "g", "a", "b", "c"], scalars: vec!["s", "k"] };
    let mut text = String::from("constant k = 0.5 in [0, 1]\nstate a, b, c\nscalar s = 2\n");
    let mut assignable = vec!["a", "b", "c", "s"];
    let names = ["x1", "x2", "x3", "x4"];
    for name in names {
        match maker.choose(4) {
            0 => {
                text += &format!("let {name} = {}\n", maker.tensor(3));
                maker.tensors.push(name);
            }
            1 => {
                text += &format!("let {name} = {}\n", maker.scalar(2));
                maker.scalars.push(name);
            }
            _ if !assignable.is_empty() => {
                let state = assignable.remove(maker.choose(assignable.len()));
                let value = match (state, maker.choose(6)) {
                    ("s", _) => maker.scalar(2),
                    (_, 0 | 1) => maker.tensor(0),
                    _ => maker.tensor(3),
                };
                text += &format!("{state} = {value}\n");
            }
            _ => {}
        }
    }
    let last = match maker.choose(8) {
        0 => maker.tensor(0),
        _ => maker.tensor(4),
    };
    text + &format!("w = {last}\n")
}

struct Maker<'a> {
    choices: std::slice::Iter<'a, u8>,
    tensors: Vec<&'static str>,
    scalars: Vec<&'static str>,
}

impl Maker<'_> {
    /// Zero once the choices are used up.
    fn choose(&mut self, among: usize) -> usize {
        self.choices.next().map_or(0, |choice| usize::from(*choice) % among)
    }

    fn tensor(&mut self, depth: usize) -> String {
        if depth == 0 || self.choices.as_slice().is_empty() {
            let index = self.choose(self.tensors.len());
            return self.tensors[index].into();
        }
        let depth = depth - 1;
        match self.choose(28) {
            0..=2 => format!("({} {} {})", self.tensor(depth), self.sign(), self.tensor(depth)),
            3 => format!("({} {} {})", self.scalar(1), self.sign(), self.tensor(depth)),
            4 => format!("({} {} {})", self.tensor(depth), self.sign(), self.scalar(1)),
            5 | 6 => format!(
                "({} {} {} * {})",
                self.tensor(depth),
                self.plus(),
                self.tensor(depth),
                self.tensor(depth)
            ),
            7 => format!(
                "({} * {} {} {})",
                self.tensor(depth),
                self.tensor(depth),
                self.plus(),
                self.tensor(depth)
            ),
            8 => format!("({} * {} {} {})", self.tensor(depth), self.scalar(0), self.plus(), self.scalar(1)),
            9 => format!(
                "({} {} {} * {})",
                self.scalar(1),
                self.plus(),
                self.tensor(depth),
                self.tensor(depth)
            ),
            10 => format!("{}({})", self.function(), self.tensor(depth)),
            11 => format!("(-{})", self.tensor(depth)),
            12 => format!("where({}, {}, {})", self.condition(depth), self.tensor(depth), self.tensor(depth)),
            13 => format!("where({}, {}, {})", self.condition(depth), self.scalar(0), self.tensor(depth)),
            16 => {
                let followed = self.tensor(depth);
                format!(
                    "({followed} {} {} * ({} - {followed}))",
                    self.plus(),
                    self.scalar(0),
                    self.tensor(depth)
                )
            }
            17 | 18 => {
                let (squared, sign) = (self.tensor(depth), self.plus());
                let (s, t) = (self.scalar(0), self.scalar(0));
                format!("({s} * {} {sign} {t} * {squared} * {squared})", self.tensor(depth))
            }
            19 => format!("(sqrt({}) / {} + {})", self.tensor(depth), self.scalar(0), self.scalar(0)),
            20 => format!("({} + sqrt({}))", self.scalar(0), self.tensor(depth)),
            21 => {
                let (x, y) = (self.tensor(depth), self.tensor(depth));
                format!("({} {} {} * ({x} / {y}))", self.tensor(depth), self.plus(), self.scalar(0))
            }
            22 => {
                let (x, y, sign) = (self.tensor(depth), self.tensor(depth), self.plus());
                format!(
                    "({} * {} {sign} {} * ({x} / {y}))",
                    self.tensor(depth),
                    self.scalar(0),
                    self.scalar(0)
                )
            }
            24 | 25 => {
                let (s, t, sign) = (self.scalar(0), self.scalar(0), self.plus());
                let y = if self.choose(2) == 0 { "g".into() } else { self.tensor(depth) };
                format!(
                    "({} {sign} {s} * ({y} {} {t} * {}))",
                    self.tensor(depth),
                    self.plus(),
                    self.tensor(depth)
                )
            }
            26 | 27 => {
                let (s, t, sign) = (self.scalar(0), self.scalar(0), self.plus());
                let z = if self.choose(2) == 0 { "g".into() } else { self.tensor(depth) };
                format!(
                    "({s} * {} {sign} ({z} {} {t} * {}))",
                    self.tensor(depth),
                    self.plus(),
                    self.tensor(depth)
                )
            }
            23 => format!("(g {} {} * {})", self.plus(), self.scalar(0), self.tensor(depth)),
            14 => format!("min({}, {})", self.tensor(depth), self.tensor(depth)),
            _ => format!("clamp({}, {}, {})", self.tensor(depth), self.scalar(0), self.tensor(depth)),
        }
    }

    fn scalar(&mut self, depth: usize) -> String {
        if depth == 0 || self.choices.as_slice().is_empty() {
            let more = ["lr", "step", "0", "0.25", "3"];
            let index = self.choose(self.scalars.len() + more.len());
            return more
                .get(index)
                .or_else(|| self.scalars.get(index - more.len()))
                .map_or("1", |name| *name)
                .into();
        }
        let depth = depth - 1;
        match self.choose(10) {
            0 => format!("norm({})", self.tensor(depth)),
            1 => format!("sum({})", self.tensor(depth)),
            2 => format!("mean({})", self.tensor(depth)),
            3 => format!("({} ** {})", self.scalar(depth), self.scalar(depth)),
            4 => format!("{}({})", self.function(), self.scalar(depth)),
            5 => format!(
                "where({} < {}, {}, {})",
                self.scalar(0),
                self.scalar(depth),
                self.scalar(depth),
                self.scalar(0)
            ),
            6 => format!("max({}, {})", self.scalar(depth), self.scalar(depth)),
            _ => format!("({} {} {})", self.scalar(depth), self.sign(), self.scalar(depth)),
        }
    }

    fn condition(&mut self, depth: usize) -> String {
        let sign = ["<", "<=", ">", ">=", "==", "!="][self.choose(6)];
        match self.choose(4) {
            0 => format!("{} {sign} {}", self.scalar(0), self.scalar(0)),
            1 => format!("{} {sign} {}", self.scalar(0), self.tensor(depth)),
            2 => format!("{} {sign} {}", self.tensor(depth), self.scalar(0)),
            _ => format!("{} {sign} {}", self.tensor(depth), self.tensor(depth)),
        }
    }

    fn sign(&mut self) -> &'static str {
        ["+", "-", "*", "/"][self.choose(4)]
    }

    fn plus(&mut self) -> &'static str {
        ["+", "-"][self.choose(2)]
    }

    fn function(&mut self) -> &'static str {
        ["sqrt", "abs", "sign", "exp", "ln"][self.choose(5)]
    }
}
