//! Workers that lie about their gradients: honest in all else, so that whatever checks a message lets theirs through.

use testudo_kernels::Model;

use crate::through::Through;

/// What a liar makes of a part of its gradient.
pub type Lie = fn(&mut [f32]);

/// Every sign flipped, and ten times as much of it.
pub fn flipped(gradient: &mut [f32]) {
    gradient.iter_mut().for_each(|value| *value *= -10.0);
}

/// The greatest numbers there are, signs in turn.
pub fn huge(gradient: &mut [f32]) {
    for (at, value) in gradient.iter_mut().enumerate() {
        *value = if at.is_multiple_of(2) { f32::MAX } else { f32::MIN };
    }
}

/// The least numbers there are above and below zero.
pub fn subnormal(gradient: &mut [f32]) {
    for (at, value) in gradient.iter_mut().enumerate() {
        *value =
            f32::from_bits(1 + at as u32 % 0x7f_ffff).copysign(if at.is_multiple_of(3) { -1.0 } else { 1.0 });
    }
}

/// `model` itself, or behind a lie if there is one. What it tells is sent to servers and scheduler alike.
#[must_use]
pub fn perhaps(model: Box<dyn Model>, lie: Option<Lie>) -> Box<dyn Model> {
    let Some(lie) = lie else { return model };
    let mut told = Vec::new();
    Box::new(Through::new(model, move |index, gradient: &[f32], ready: &mut dyn FnMut(usize, &[f32])| {
        told.clear();
        told.extend_from_slice(gradient);
        lie(&mut told);
        ready(index, &told);
    }))
}
