//! Finding checkpoints and deciding whether they can be trusted.
//!
//! [`Checkpoints::newest`] finds one to go on from, [`Checkpoints::verify`] says everything that is wrong with a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_actors::Resume;
use testudo_transport::pki::read_public;
use testudo_transport::{Crl, Trust};

use super::head::Head;
use super::layout::Layout;
use super::manifest::{self, Hex, Manifest, Signature, json, read_small};
use super::{CheckpointError, part, retention};

const PEM_END: &str = "-----END CERTIFICATE-----";

/// A whole checkpoint whose manifest was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Whole {
    /// What it says.
    pub manifest: Manifest,
    /// BLAKE3 of the manifest's bytes.
    pub manifest_blake3: Hex,
}

impl Whole {
    /// Its step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.manifest.step
    }
}

/// The CAs that may have certified who signed.
#[derive(Debug, Clone, Default)]
pub struct TrustedCas(Vec<String>);

impl TrustedCas {
    /// Reads a file of PEM certificates; one that is not there holds none.
    ///
    /// # Errors
    /// [`CheckpointError`] when it cannot be read or is too large.
    pub fn load(path: &Path) -> Result<TrustedCas, CheckpointError> {
        if !path.exists() {
            return Ok(TrustedCas::default());
        }
        let text = String::from_utf8(read_small(path)?).map_err(|e| CheckpointError::malformed(path, e))?;
        Ok(TrustedCas::of_text(&text))
    }

    /// Reads a file that somebody named as whom to trust: one that others than its owner (this user or root) could have written is
    /// refused, as for every file that decides that.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is not there, is no such file, or holds no certificate.
    pub fn given(path: &Path) -> Result<TrustedCas, CheckpointError> {
        let text = String::from_utf8(read_public(path)?).map_err(|e| CheckpointError::malformed(path, e))?;
        let given = TrustedCas::of_text(&text);
        match given.0.is_empty() {
            true => Err(CheckpointError::malformed(path, "no certificate (PEM) in it")),
            false => Ok(given),
        }
    }

    fn of_text(text: &str) -> TrustedCas {
        TrustedCas(blocks(text).map(|block| format!("{block}\n")).collect())
    }

    /// What they are trusted in, for one job. A block that is no certificate is trusted in nothing.
    #[must_use]
    pub fn of(&self, trust_domain: &str, job: &str) -> Vec<Trust> {
        self.0.iter().filter_map(|pem| Trust::from_pem_for(pem.as_bytes(), trust_domain, job).ok()).collect()
    }

    /// Whether every certificate of `pem` is one of them.
    #[must_use]
    pub fn contains(&self, pem: &str) -> bool {
        blocks(pem).all(|one| self.0.iter().any(|block| block.trim() == one))
    }

    /// The run's name: BLAKE3 of its first CA's certificate as it stands in the file.
    #[must_use]
    pub fn run(&self) -> Option<Hex> {
        self.0.first().map(|pem| Hex(*blake3::hash(pem.as_bytes()).as_bytes()))
    }
}

/// The certificates of a PEM text, each with what stands in front of it.
fn blocks(pem: &str) -> impl Iterator<Item = &str> {
    pem.split_inclusive(PEM_END).map(str::trim).filter(|block| block.ends_with(PEM_END))
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    layout: Layout,
    trusted: TrustedCas,
    revoked: Vec<Arc<Crl>>,
}

impl Checkpoints {
    /// Those in `folder`, a run directory's `checkpoint`, trusting the CAs that are listed there.
    ///
    /// # Errors
    /// [`CheckpointError`] when the list cannot be read.
    pub fn open(folder: &Path) -> Result<Checkpoints, CheckpointError> {
        let layout = Layout::new(folder);
        let trusted = TrustedCas::load(&layout.trust())?;
        Ok(Checkpoints { layout, trusted, revoked: Vec::new() })
    }

    /// The same, trusting the CAs in the PEM file `ca` and no others: an operator who keeps a copy elsewhere need not
    /// believe the folder.
    ///
    /// # Errors
    /// As [`TrustedCas::given`].
    pub fn trusting(mut self, ca: &Path) -> Result<Checkpoints, CheckpointError> {
        self.trusted = TrustedCas::given(ca)?;
        Ok(self)
    }

    /// The same, trusting the CAs of the PEM text `ca` and no others.
    #[must_use]
    pub fn under(mut self, ca: &str) -> Checkpoints {
        self.trusted = TrustedCas::of_text(ca);
        self
    }

    /// The same, trusting nobody whose certificate is on one of these lists, whenever it was put there: a manifest says itself when it
    /// was signed, and whoever has a stolen key says what suits him.
    #[must_use]
    pub fn heeding(mut self, lists: Vec<Arc<Crl>>) -> Checkpoints {
        self.revoked = lists;
        self
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The steps of whole checkpoints, in order: those that have a manifest.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let folder = self.layout.folder();
        let mut steps = self.layout.steps().map_err(CheckpointError::io("read", folder))?;
        steps.retain(|step| self.layout.manifest(*step).exists());
        Ok(steps)
    }

    /// The checkpoint at `step`; its manifest's signature holds.
    ///
    /// # Errors
    /// [`CheckpointError`] saying why it cannot be trusted.
    pub fn read(&self, step: u64) -> Result<Whole, CheckpointError> {
        let path = self.layout.manifest(step);
        if !path.exists() {
            let (path, what) = (self.layout.folder().to_path_buf(), format!(" of step {step}"));
            return Err(CheckpointError::None { path, what });
        }
        let bytes = read_small(&path)?;
        let manifest = Manifest::parse(&path, &bytes, step)?;
        let signed = self.layout.signature(step);
        let signature: Signature = json(&signed, &read_small(&signed)?)?;
        manifest::check(&path, &signature, &self.trusted, &bytes, &manifest)?;
        signature.check_lists(&signed, &self.revoked)?;
        if self.trusted.run().is_none() {
            return Err(CheckpointError::untrusted(&path, "the run has no CA to check it against"));
        }
        Ok(Whole { manifest, manifest_blake3: Hex(*blake3::hash(&bytes).as_bytes()) })
    }

    /// The newest whole checkpoint; with `at_most`, the newest at or before that step. Its manifest's signature holds; its
    /// parts are for [`check_parts`](Checkpoints::check_parts). Without `at_most` it is the chain's head, or descends from it.
    ///
    /// # Errors
    /// [`CheckpointError::None`] when there is none, [`CheckpointError::RolledBack`] when a newer one was there, and
    /// whatever else is wrong with it.
    pub fn newest(&self, at_most: Option<u64>) -> Result<Whole, CheckpointError> {
        let steps = self.steps()?;
        let fits = |step: &&u64| at_most.is_none_or(|most| **step <= most);
        let found = steps.iter().rev().find(fits).map(|step| self.read(*step)).transpose()?;
        if at_most.is_none() {
            self.check_head(&steps)?;
        }
        found.ok_or_else(|| CheckpointError::None {
            path: self.layout.folder().to_path_buf(),
            what: at_most.map(|most| format!(" at or before step {most}")).unwrap_or_default(),
        })
    }

    /// Checks that the job whose signed bytes have the hash `signed` may begin with `resume`: that checkpoint is here, and none newer is of
    /// this very job. Where one is, the job was under way already, and nobody has signed for its going back.
    ///
    /// # Errors
    /// [`CheckpointError`] saying which it is.
    pub fn check_beginning(&self, resume: &Resume, signed: Hex) -> Result<(), CheckpointError> {
        // First: by then it may have deleted the one that it began with.
        self.check_not_begun(resume.step, signed)?;
        if self.read(resume.step)?.manifest_blake3 != Hex(resume.manifest_blake3) {
            let folder = self.layout.folder().display();
            return Err(CheckpointError::OtherJob(format!(
                "the job begins with another than that at step {} in {folder}",
                resume.step
            )));
        }
        Ok(())
    }

    /// The second of these.
    pub(super) fn check_not_begun(&self, begins: u64, signed: Hex) -> Result<(), CheckpointError> {
        let own = |step: &u64| self.read(*step).is_ok_and(|whole| whole.manifest.job_blake3 == signed);
        match self.steps()?.into_iter().filter(|step| *step > begins).find(own) {
            Some(step) => Err(CheckpointError::Begun { step, begins }),
            None => Ok(()),
        }
    }

    /// Checks that the signature of `whole` holds under one of `trusted`, whomever the folder trusts.
    ///
    /// # Errors
    /// [`CheckpointError::Untrusted`] when it does not.
    pub fn check_signer(&self, whole: &Whole, trusted: &[Trust]) -> Result<(), CheckpointError> {
        let (path, signed) = (self.layout.manifest(whole.step()), self.layout.signature(whole.step()));
        let bytes = read_small(&path)?;
        if Hex(*blake3::hash(&bytes).as_bytes()) != whole.manifest_blake3 {
            return Err(CheckpointError::damaged(&path, "it has changed since it was read"));
        }
        let signature: Signature = json(&signed, &read_small(&signed)?)?;
        manifest::check_under(&path, &signature, trusted, &bytes, &whole.manifest)
    }

    /// Checks the size and hash of every part.
    ///
    /// # Errors
    /// [`CheckpointError`] for the first that is not what the manifest says.
    pub fn check_parts(&self, whole: &Whole) -> Result<(), CheckpointError> {
        let folder = self.layout.step(whole.step());
        for (name, receipt) in whole.manifest.files() {
            part::check(&folder.join(name), receipt)?;
        }
        Ok(())
    }

    /// The chain's head, its signature checked.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is none.
    pub fn head(&self) -> Result<Option<Head>, CheckpointError> {
        Head::read(&self.layout, &self.trusted)
    }

    /// The newest of `steps` must be the head or descend from it: a crash may leave the head one behind, never ahead.
    fn check_head(&self, steps: &[u64]) -> Result<(), CheckpointError> {
        let rolled_back = |reason: String| {
            Err(CheckpointError::RolledBack { path: self.layout.folder().to_path_buf(), reason })
        };
        let Some(head) = self.head()? else {
            // It is written after a run's first checkpoint, and before anything follows that or is deleted.
            let newest = steps.last().map(|step| self.read(*step)).transpose()?;
            let followed = newest.is_some_and(|whole| whole.manifest.parent.is_some());
            return match followed || !retention::read_deletions(&self.layout)?.is_empty() {
                true => rolled_back("head.json, which says what is the newest, is gone".to_owned()),
                false => Ok(()),
            };
        };
        let mut expected = None;
        for step in steps.iter().rev() {
            let whole = self.read(*step)?;
            if expected.is_some_and(|parent| parent != whole.manifest_blake3) {
                break;
            }
            if whole.manifest_blake3 == head.manifest_blake3 {
                return Ok(());
            }
            match whole.manifest.parent {
                Some(parent) if *step > head.step => expected = Some(parent),
                _ => break,
            }
        }
        rolled_back(format!("the checkpoint at step {} was the newest and is not there", head.step))
    }

    /// Everything that is wrong with the folder, in words; nothing if all is well. What was checked is in `checked`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the folder itself cannot be read.
    pub fn verify(&self, checked: &mut Vec<Whole>) -> Result<Vec<String>, CheckpointError> {
        let mut problems = Vec::new();
        let steps = self.steps()?;
        let mut found = BTreeMap::new();
        for step in &steps {
            match self.read(*step).and_then(|whole| self.check_parts(&whole).map(|()| whole)) {
                Ok(whole) => {
                    found.insert(whole.manifest_blake3.0, *step);
                    checked.push(whole);
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        if let Err(error) = self.check_head(&steps) {
            problems.push(error.to_string());
        }
        let deleted: BTreeSet<[u8; 32]> = match retention::read_deletions(&self.layout) {
            Ok(deleted) => deleted.iter().map(|d| d.manifest_blake3.0).collect(),
            Err(error) => {
                problems.push(error.to_string());
                BTreeSet::new()
            }
        };
        for whole in checked.iter() {
            let Some(parent) = whole.manifest.parent else { continue };
            match found.get(&parent.0) {
                Some(step) if *step >= whole.step() => {
                    problems.push(format!("step {} follows step {step}: steps only grow", whole.step()));
                }
                Some(_) => {}
                None if deleted.contains(&parent.0) => {}
                None => problems.push(format!(
                    "the checkpoint before step {} (manifest {parent}) is not there, and no deletion is recorded",
                    whole.step()
                )),
            }
        }
        Ok(problems)
    }

    /// Folders of steps that are not whole: what a crash left, or what is being written.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] when the folder cannot be read.
    pub fn unfinished(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let folder = self.layout.folder();
        let steps = self.layout.steps().map_err(CheckpointError::io("read", folder))?;
        let whole = |step: &u64| self.layout.manifest(*step).exists();
        Ok(steps.into_iter().filter(|step| !whole(step)).map(|step| self.layout.step(step)).collect())
    }
}
