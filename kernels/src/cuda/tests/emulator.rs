//! The launch emulator as a [`Device`]: a child process that runs kernels, which g++ compiled, on the host.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::cuda::{Argument, Device, DeviceError, Geometry, Source};

/// Kernels as a program, and the process that runs them.
pub(super) struct Emulator {
    program: PathBuf,
    running: Option<(Child, ChildStdin, ChildStdout)>,
    /// The order in which threads and blocks run: ascending for 0, else shuffled.
    pub(super) seed: u32,
    /// What the device says of itself.
    pub(super) blocks: u32,
    _folder: tempfile::TempDir,
}

/// Skips a test where there is no g++, unless the environment says that there must be one.
pub(super) fn is_there() -> bool {
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
    /// Compiles sources into one program, each part once.
    pub(super) fn new(sources: &[Source]) -> Self {
        let folder = tempfile::tempdir().unwrap();
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
        let (source, program) = (folder.path().join("kernels.cpp"), folder.path().join("kernels"));
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
        Self { program, running: None, seed: 0, blocks: 7, _folder: folder }
    }

    /// Memory alone, which takes no compiler; a launch is a panic.
    pub(super) fn without_kernels() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("none");
        Self { program, running: None, seed: 0, blocks: 7, _folder: folder }
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

impl Device for Emulator {
    type Memory = Vec<u8>;

    fn allocate(&mut self, _tensor: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0; bytes])
    }

    fn write(&mut self, memory: &mut Vec<u8>, bytes: &[u8]) -> Result<(), DeviceError> {
        memory[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, memory: &Vec<u8>, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.copy_from_slice(&memory[..bytes.len()]);
        Ok(())
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
        let (_, input, output) = self.running.get_or_insert_with(|| {
            let mut child =
                Command::new(&self.program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            (child, input, output)
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
        if let Some((mut child, ..)) = self.running.take() {
            child.wait().unwrap();
        }
        let message = String::from_utf8(message).unwrap();
        Err(DeviceError::Driver { doing: format!("launch {kernel}"), message })
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if let Some((mut child, input, output)) = self.running.take() {
            drop((input, output));
            let _ = child.wait();
        }
    }
}
