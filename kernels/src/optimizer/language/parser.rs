//! From tokens to what they say.
//!
//! A recursive descent of bounded depth. The order in which signs bind, loosest first: comparisons (which do not
//! chain), `+ -`, `* /`, unary `-`, `**` (whose right side may have a sign: `2 ** -step`). `+ - * /` group to the left, `**` to
//! the right.

use super::error::{Place, Problem, ProgramError};
use super::lexer::{Token, Word, tokens};
use super::syntax::{Expression, Form, Function, Interval, Says, Statement, Syntax};
use super::{MAX_DEPTH, MAX_NODES};

/// What a text says.
pub(super) fn parse(text: &str) -> Result<Syntax<'_>, ProgramError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0, syntax: Syntax::default() };
    loop {
        let token = parser.next();
        match token.word {
            Word::LineEnd => continue,
            Word::TextEnd => {
                parser.syntax.end = Some(token.place);
                return Ok(parser.syntax);
            }
            Word::Name(name) => {
                let says = parser.statement(name)?;
                parser.syntax.statements.push(Statement { place: token.place, says });
            }
            _ => return Err(expected("a statement", token)),
        }
        let end = parser.next();
        match end.word {
            Word::LineEnd => {}
            Word::TextEnd => parser.at -= 1,
            _ => return Err(expected("the end of the line", end)),
        }
    }
}

fn expected(expected: &'static str, found: Token<'_>) -> ProgramError {
    found.place.error(Problem::Expected { expected, found: found.word.describe() })
}

struct Parser<'a> {
    /// The last is the text's end.
    tokens: Vec<Token<'a>>,
    at: usize,
    depth: usize,
    syntax: Syntax<'a>,
}

impl<'a> Parser<'a> {
    /// The next token, without taking it; the text's end stays.
    fn peek(&self) -> Token<'a> {
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Takes the next token if it is one of these signs.
    fn sign(&mut self, signs: &[&'static str]) -> Option<(Place, &'static str)> {
        match self.peek() {
            Token { place, word: Word::Sign(sign) } if signs.contains(&sign) => {
                self.at += 1;
                Some((place, sign))
            }
            _ => None,
        }
    }

    fn need(&mut self, sign: &'static str, name: &'static str) -> Result<Place, ProgramError> {
        self.sign(&[sign]).map(|(place, _)| place).ok_or_else(|| expected(name, self.peek()))
    }

    fn name(&mut self) -> Result<(Place, &'a str), ProgramError> {
        match self.next() {
            Token { place, word: Word::Name(name) } => Ok((place, name)),
            other => Err(expected("a name", other)),
        }
    }

    fn statement(&mut self, first: &'a str) -> Result<Says<'a>, ProgramError> {
        match first {
            "constant" => self.constant(),
            "state" => {
                let mut names = vec![self.name()?];
                while self.sign(&[","]).is_some() {
                    names.push(self.name()?);
                }
                Ok(Says::States(names))
            }
            "scalar" => {
                let (_, name) = self.name()?;
                self.need("=", "`=` and the scalar's first value")?;
                Ok(Says::Scalar { name, initial: self.signed_number(false)? })
            }
            "let" => {
                let (_, name) = self.name()?;
                self.need("=", "`=`")?;
                Ok(Says::Let { name, value: self.expression()? })
            }
            name => {
                self.need("=", "`=` after the name at the line's start")?;
                Ok(Says::Assign { name, value: self.expression()? })
            }
        }
    }

    fn constant(&mut self) -> Result<Says<'a>, ProgramError> {
        let (_, name) = self.name()?;
        self.need("=", "`=` and a default")?;
        let default = self.signed_number(false)?;
        match self.next() {
            Token { word: Word::Name("in"), .. } => {}
            other => return Err(expected("`in` and an interval such as [0, 1)", other)),
        }
        let (place, open) = self.sign(&["[", "("]).ok_or_else(|| expected("`[` or `(`", self.peek()))?;
        let low = self.signed_number(true)?;
        self.need(",", "`,` between the interval's ends")?;
        let high = self.signed_number(true)?;
        let (_, close) = self.sign(&["]", ")"]).ok_or_else(|| expected("`]` or `)`", self.peek()))?;
        let interval = Interval { low, low_included: open == "[", high, high_included: close == "]" };
        Ok(Says::Constant { name, default, interval, interval_at: place })
    }

    fn signed_number(&mut self, or_infinity: bool) -> Result<f64, ProgramError> {
        let minus = self.sign(&["-"]).is_some();
        let value = match self.next() {
            Token { word: Word::Number(value), .. } => value,
            Token { word: Word::Name("inf"), .. } if or_infinity => f64::INFINITY,
            other => return Err(expected(if or_infinity { "a number or inf" } else { "a number" }, other)),
        };
        Ok(if minus { -value } else { value })
    }

    fn push(&mut self, place: Place, form: Form<'a>) -> Result<usize, ProgramError> {
        if self.syntax.expressions.len() == MAX_NODES {
            return Err(place.error(Problem::TooManyNodes { most: MAX_NODES }));
        }
        self.syntax.expressions.push(Expression { place, form });
        Ok(self.syntax.expressions.len() - 1)
    }

    /// Calls `inner` one level deeper. Every cycle of the descent goes through here.
    fn deeper<T>(&mut self, inner: fn(&mut Self) -> Result<T, ProgramError>) -> Result<T, ProgramError> {
        if self.depth == MAX_DEPTH {
            return Err(self.peek().place.error(Problem::TooDeep { most: MAX_DEPTH }));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Result<usize, ProgramError> {
        const COMPARISONS: [&str; 6] = ["<", "<=", ">", ">=", "==", "!="];
        let left = self.sum()?;
        let Some((place, sign)) = self.sign(&COMPARISONS) else { return Ok(left) };
        let right = self.sum()?;
        let comparison = self.push(place, Form::Binary(sign, left, right))?;
        match self.sign(&COMPARISONS) {
            Some((place, _)) => Err(place.error(Problem::Chain)),
            None => Ok(comparison),
        }
    }

    fn sum(&mut self) -> Result<usize, ProgramError> {
        let mut left = self.product()?;
        while let Some((place, sign)) = self.sign(&["+", "-"]) {
            let right = self.product()?;
            left = self.push(place, Form::Binary(sign, left, right))?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<usize, ProgramError> {
        let mut left = self.unary()?;
        while let Some((place, sign)) = self.sign(&["*", "/"]) {
            let right = self.unary()?;
            left = self.push(place, Form::Binary(sign, left, right))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<usize, ProgramError> {
        if let Some((place, _)) = self.sign(&["-"]) {
            let operand = self.deeper(Self::unary)?;
            return self.push(place, Form::Negate(operand));
        }
        let base = self.atom()?;
        let Some((place, sign)) = self.sign(&["**"]) else { return Ok(base) };
        let exponent = self.deeper(Self::unary)?;
        self.push(place, Form::Binary(sign, base, exponent))
    }

    fn atom(&mut self) -> Result<usize, ProgramError> {
        let token = self.next();
        match token.word {
            Word::Number(value) => self.push(token.place, Form::Number(value)),
            Word::Name(name) if self.sign(&["("]).is_some() => self.call(token.place, name),
            Word::Name(name) => self.push(token.place, Form::Name(name)),
            Word::Sign("(") => {
                let inner = self.deeper(Self::expression)?;
                self.need(")", "`)`")?;
                Ok(inner)
            }
            _ => Err(expected("a value", token)),
        }
    }

    fn call(&mut self, place: Place, name: &str) -> Result<usize, ProgramError> {
        let Some((name, function, takes)) = Function::named(name) else {
            return Err(place.error(Problem::NoFunction(name.into())));
        };
        let (mut arguments, mut found) = ([0; 3], 0);
        if self.sign(&[")"]).is_none() {
            loop {
                let argument = self.deeper(Self::expression)?;
                if let Some(slot) = arguments.get_mut(found) {
                    *slot = argument;
                }
                found += 1;
                if self.sign(&[","]).is_none() {
                    break;
                }
            }
            self.need(")", "`,` or `)`")?;
        }
        if found != takes {
            return Err(place.error(Problem::Arguments { function: name, takes, found }));
        }
        self.push(place, Form::Call(function, arguments))
    }
}
