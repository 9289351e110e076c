//! How a job's values travel.

use serde::{Deserialize, Serialize};
use testudo_kernels::{Codec, ParameterSpec, Update};

use super::{JobError, JobSpec};

/// How values travel, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Codecs {
    /// Gradients, from workers to servers. Unless it is lossless, each logical shard is encoded by itself: workers sum nothing.
    pub push: Codec,
    /// Parameters, from servers to workers: each version is encoded once, and everybody who computes with it decodes it. Servers
    /// keep, hash and export what they encoded.
    pub pull: Codec,
}

/// Logical shards at most where each is encoded by itself: what servers and scheduler keep of a step grows with them.
const MOST_ENCODED_SHARDS: u32 = 1024;

impl JobSpec {
    /// A codec must work, stand alone where values are sent anew each time, and make nothing longer.
    pub(super) fn validate_codecs(&self) -> Result<(), JobError> {
        let bad = |text: String| Err(JobError::Invalid(text));
        let Codecs { push, pull } = self.codecs;
        for (key, codec) in [("transport.push_codec", push), ("transport.pull_codec", pull)] {
            if let Err(error) = codec.validate() {
                return bad(format!("{key} is {codec}: {error}"));
            }
            let most = codec.encoded_len(self.slice_bytes as usize / 4);
            if most > self.slice_bytes as usize {
                return bad(format!(
                    "{key} is {codec}, in which a slice of {} bytes (transport.slice_bytes) takes {most}: use larger slices",
                    self.slice_bytes
                ));
            }
        }
        if !pull.stands_alone() {
            return bad(format!(
                "transport.pull_codec is {pull}, which only says what has changed since: use f32, f16, bf16 or int8"
            ));
        }
        let is_mean = |p: &ParameterSpec| matches!(p.update, Update::Average { .. });
        if push.feeds_back() && self.model.parameters().is_ok_and(|all| all.iter().any(is_mean)) {
            return bad(format!(
                "transport.push_codec is {push}, which says later what it cannot say now, and this model has running means, which \
                 take what is said: use f32 or bf16"
            ));
        }
        if push == Codec::F16 && self.model.parameters().is_ok_and(|all| all.iter().any(is_mean)) {
            return bad("transport.push_codec is f16, whose largest number is 65,504, and this model has running means, whose sums \
                        over a shard's examples may be beyond it: use f32 or bf16"
                .into());
        }
        if !push.is_lossless() && self.logical_shards > MOST_ENCODED_SHARDS {
            return bad(format!(
                "transport.push_codec is {push}, which encodes each of training.logical_shards ({}) by itself, and servers and \
                 scheduler keep account of each: at most {MOST_ENCODED_SHARDS} are possible; as many as workers is a good number",
                self.logical_shards
            ));
        }
        Ok(())
    }

    /// Whether checkpoints hold what error feedback keeps at the workers.
    #[must_use]
    pub fn keeps_residuals(&self) -> bool {
        self.codecs.push.feeds_back() && self.checkpoints.wanted()
    }

    /// Whether workers sum the shards that they hold. What is a vote, or is encoded with losses, goes by itself.
    #[must_use]
    pub fn sums_shards(&self) -> bool {
        self.codecs.push.is_lossless() && self.aggregation.hostile().is_none()
    }
}
