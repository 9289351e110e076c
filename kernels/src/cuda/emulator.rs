//! The launch emulator as a [`Device`]: a child process that runs kernels, which g++ compiled, on the host. For tests of this crate and
//! of those that compute on devices; what is wrong is a panic.

#![allow(clippy::unwrap_used, reason = "a test's tool: what fails fails the test")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::{Argument, Device, DeviceError, Fetch, Geometry, Product, Source};

mod watched;

pub use watched::Watched;

/// Memory, and programs of kernels, each in a process of its own once it is needed.
#[derive(Debug)]
pub struct Emulator {
    programs: Arc<Programs>,
    running: HashMap<PathBuf, Running>,
    /// The order in which threads and blocks run: ascending for 0, else shuffled.
    pub seed: u32,
    /// What the device says of itself.
    pub blocks: u32,
    /// Bytes that it gives out at most, as a GPU whose memory ends.
    pub memory: usize,
    /// Whether it has a library of matrix products, which adds each element's terms from the last to the first.
    pub library: bool,
    /// Bytes that it gave out. None comes back.
    given: usize,
    fetched: Vec<(Vec<u8>, Arc<()>)>,
}

/// What was compiled, for all devices that came of one.
#[derive(Debug)]
struct Programs {
    folder: tempfile::TempDir,
    compiled: Mutex<Vec<(Vec<Source>, PathBuf)>>,
}

/// A program at work.
#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

/// Skips a test where there is no g++, unless the environment says that there must be one.
///
/// # Panics
/// If there must be.
#[must_use]
pub fn is_there() -> bool {
    let found = Command::new("g++").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    assert!(
        is_there || std::env::var_os("TESTUDO_REQUIRE_GXX").is_none(),
        "g++ is required here, and was not found"
    );
    if !is_there {
        println!("skipped: no g++");
    }
    is_there
}

impl Emulator {
    /// Compiles sources into one program, each part once. Others are compiled when they are launched.
    ///
    /// # Panics
    /// If g++ is not there, or refuses.
    #[must_use]
    pub fn new(sources: &[Source]) -> Self {
        let emulator = Self::without_kernels();
        if !sources.is_empty() {
            emulator.programs.compile(sources);
        }
        emulator
    }

    /// Memory alone, which takes no compiler.
    ///
    /// # Panics
    /// If no folder can be made.
    #[must_use]
    pub fn without_kernels() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::of(Arc::new(Programs { folder, compiled: Mutex::default() }), (0, 7))
    }

    /// Another device that runs the same kernels, with memory of its own.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::of(Arc::clone(&self.programs), (self.seed, self.blocks))
    }

    fn of(programs: Arc<Programs>, (seed, blocks): (u32, u32)) -> Self {
        let (running, fetched) = (HashMap::new(), Vec::new());
        Self { programs, running, seed, blocks, memory: usize::MAX, library: false, given: 0, fetched }
    }

    /// What a launch is as bytes: serve.hpp says how.
    fn request(&self, kernel: &str, geometry: Geometry, arguments: &[Argument<'_, Vec<u8>>]) -> Vec<u8> {
        let Geometry { blocks, threads, shared_bytes } = geometry;
        let mut bytes = (kernel.len() as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(kernel.as_bytes());
        for number in [blocks, 1, 1, threads, 1, 1, shared_bytes, self.seed, arguments.len() as u32] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        for argument in arguments {
            let (is_buffer, value): (bool, &[u8]) = match argument {
                Argument::In(memory) => (true, memory),
                Argument::InOut(memory) => (true, memory),
                Argument::F32(value) => (false, &value.to_ne_bytes()),
                Argument::U32(value) => (false, &value.to_ne_bytes()),
                Argument::U64(value) => (false, &value.to_ne_bytes()),
                Argument::Scalars(values) => (false, bytemuck::cast_slice(&values.0)),
            };
            bytes.push(u8::from(is_buffer));
            bytes.extend_from_slice(&(value.len() as u64).to_ne_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }
}

impl Programs {
    /// The program that has a source.
    fn find(&self, source: &Source) -> PathBuf {
        let known =
            |(sources, program): &(Vec<Source>, PathBuf)| sources.contains(source).then(|| program.clone());
        let found = self.compiled.lock().unwrap().iter().find_map(known);
        found.unwrap_or_else(|| self.compile(std::slice::from_ref(source)))
    }

    fn compile(&self, sources: &[Source]) -> PathBuf {
        let mut compiled = self.compiled.lock().unwrap();
        let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulator");
        let mut text = String::from("#include \"serve.hpp\"\n");
        let mut done: Vec<&str> = Vec::new();
        for (name, part) in sources.iter().flat_map(Source::parts) {
            if !done.contains(&name) {
                done.push(name);
                text += &format!("#line 1 \"{name}\"\n{part}\n");
            }
        }
        let mut kernels: Vec<&str> = sources.iter().flat_map(Source::kernels).collect();
        kernels.sort_unstable();
        kernels.dedup();
        let names: Vec<String> = kernels.iter().map(|kernel| format!("EMULATOR_KERNEL({kernel})")).collect();
        text += &format!("int main() {{ return emulator::serve({{{}}}); }}\n", names.join(",\n"));
        let program = self.folder.path().join(format!("kernels-{}", compiled.len()));
        let source = program.with_extension("cpp");
        std::fs::write(&source, text).unwrap();
        // No contraction of its own, as NVRTC is told; what may alias is the kernels' business.
        let mut compiler = Command::new("g++");
        compiler
            .args([
                "-std=c++17",
                "-O1",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-Wall",
                "-Wextra",
                "-Werror",
            ])
            .args([
                "-Wno-unused-function",
                "-Wno-unused-parameter",
                "-Wno-unknown-pragmas",
                "-Wno-parentheses",
                "-I",
            ])
            .args([&emulator, &source])
            .arg("-o")
            .arg(&program);
        let output = compiler.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        compiled.push((sources.to_vec(), program.clone()));
        program
    }
}

impl Device for Emulator {
    type Memory = Vec<u8>;

    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let (free, total) = (self.memory - self.given, self.memory);
        if bytes > free {
            return Err(DeviceError::OutOfMemory { tensor: tensor.into(), bytes, free, total });
        }
        self.given += bytes;
        Ok(vec![0; bytes])
    }

    fn write(&mut self, memory: &mut Vec<u8>, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        memory[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, memory: &Vec<u8>, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&memory[at..at + bytes.len()]);
        Ok(())
    }

    /// At once: later writers wait for the copy.
    fn fetch(&mut self, memory: &Vec<u8>, bytes: usize) -> Result<Fetch, DeviceError> {
        let copy = memory[..bytes].to_vec();
        let free = self.fetched.iter().position(|(_, held)| Arc::strong_count(held) == 1);
        let number = free.unwrap_or(self.fetched.len());
        match self.fetched.get_mut(number) {
            Some((room, _)) => *room = copy,
            None => self.fetched.push((copy, Arc::default())),
        }
        Ok(Fetch::holding(number, &self.fetched[number].1))
    }

    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        show(&std::mem::take(&mut self.fetched[fetch.number()].0));
        Ok(())
    }

    fn multiply(
        &mut self,
        product: Product,
        a: &Vec<u8>,
        b: &Vec<u8>,
        c: &mut Vec<u8>,
    ) -> Result<bool, DeviceError> {
        let Product { transposed: [ta, tb], sizes: [m, n, k], distances: [lda, ldb, ldc] } = product;
        if !self.library {
            return Ok(false);
        }
        let number = |of: &[u8], at: usize| f32::from_ne_bytes(of[4 * at..4 * at + 4].try_into().unwrap());
        for (column, row) in (0..n).flat_map(|column| (0..m).map(move |row| (column, row))) {
            let sum = (0..k).rev().fold(0.0, |sum, depth| {
                let left = number(a, if ta { depth + row * lda } else { row + depth * lda });
                let right = number(b, if tb { column + depth * ldb } else { depth + column * ldb });
                sum + left * right
            });
            let at = 4 * (row + column * ldc);
            c[at..at + 4].copy_from_slice(&f32::to_ne_bytes(sum));
        }
        Ok(true)
    }

    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, Vec<u8>>],
    ) -> Result<(), DeviceError> {
        source.check(kernel, arguments)?;
        let request = self.request(kernel, geometry, arguments);
        let program = self.programs.find(source);
        let Running { input, output, .. } = self.running.entry(program.clone()).or_insert_with(|| {
            let mut child =
                Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            Running { child, input, output }
        });
        input.write_all(&request).unwrap();
        input.flush().unwrap();
        let mut status = [0];
        output.read_exact(&mut status).unwrap();
        if status == [0] {
            for argument in arguments {
                match argument {
                    Argument::InOut(memory) => output.read_exact(memory).unwrap(),
                    Argument::In(memory) => {
                        let mut after = vec![0; memory.len()];
                        output.read_exact(&mut after).unwrap();
                        assert!(after == **memory, "{kernel} changed what is constant");
                    }
                    _ => {}
                }
            }
            return Ok(());
        }
        let mut length = [0; 4];
        output.read_exact(&mut length).unwrap();
        let mut message = vec![0; u32::from_ne_bytes(length) as usize];
        output.read_exact(&mut message).unwrap();
        if let Some(mut ended) = self.running.remove(&program) {
            ended.child.wait().unwrap();
        }
        let message = String::from_utf8(message).unwrap();
        Err(DeviceError::Driver { doing: format!("launch {kernel}"), message })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (_, Running { mut child, input, output }) in self.running.drain() {
            drop((input, output));
            let _ = child.wait();
        }
    }
}
