//! Images in panels: the features of an example are pixels, row by row, and within a pixel its channels.
//!
//! A window of neighbouring pixels is then one run of features, which a product reads where it lies. Outside the layers
//! images are channels x height x width, as PyTorch has them: [`Image::to_pixels`] and [`Image::to_channels`] turn one
//! order into the other.

use super::Panels;

/// Sizes of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Image {
    /// Pixels of one image.
    pub(crate) fn pixels(self) -> usize {
        self.height.saturating_mul(self.width)
    }

    /// Numbers of one image.
    pub(crate) fn features(self) -> usize {
        self.pixels().saturating_mul(self.channels)
    }

    /// Features in the order (channel, y, x) into features in the order (y, x, channel).
    pub(crate) fn to_pixels(self, panels: Panels, from: &[f32], to: &mut [f32]) {
        permute(panels, self.channels, self.pixels(), from, to);
    }

    /// Features in the order (y, x, channel) into features in the order (channel, y, x).
    pub(crate) fn to_channels(self, panels: Panels, from: &[f32], to: &mut [f32]) {
        permute(panels, self.pixels(), self.channels, from, to);
    }
}

/// Row `i * columns + j` of each panel becomes row `j * rows + i`.
fn permute(panels: Panels, rows: usize, columns: usize, from: &[f32], to: &mut [f32]) {
    let features = rows * columns;
    for panel in panels.iter() {
        let range = panel.start * features..(panel.start + panel.width) * features;
        let (Some(from), Some(to)) = (from.get(range.clone()), to.get_mut(range)) else { return };
        for (target, to) in to.chunks_exact_mut(panel.width).enumerate() {
            let source = (target % rows) * columns + target / rows;
            if let Some(from) = from.get(source * panel.width..(source + 1) * panel.width) {
                to.copy_from_slice(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_turned_into_each_other() {
        let image = Image { channels: 3, height: 2, width: 5 };
        let rows: Vec<f32> = (0..30 * 7).map(|i| i as f32).collect();
        let panels = Panels::new(7);
        let mut channels = vec![0.0; panels.elements(30)];
        let (mut pixels, mut again) = (channels.clone(), channels.clone());
        panels.fill(&rows, 30, &mut channels);
        image.to_pixels(panels, &channels, &mut pixels);
        let mut found = vec![0.0; rows.len()];
        panels.empty(&pixels, 30, &mut found);
        for example in 0..7 {
            for (channel, pixel) in (0..3).flat_map(|c| (0..10).map(move |p| (c, p))) {
                assert_eq!(
                    found[example * 30 + pixel * 3 + channel],
                    rows[example * 30 + channel * 10 + pixel]
                );
            }
        }
        image.to_channels(panels, &pixels, &mut again);
        assert_eq!(again, channels);
    }
}
