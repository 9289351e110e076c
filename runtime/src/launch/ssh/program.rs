//! The program on a host: named by the cluster file, or a copy of this one, called by its hash.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::process::Stdio;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::process::Command;

use super::client::Client;
use crate::config::Host;
use crate::error::Failure;
use crate::signing::hex;

/// How long a host may take to say whether it has the program.
const LOOK: Duration = Duration::from_secs(60);

/// How long a copy may take.
const COPY: Duration = Duration::from_secs(900);

/// This program, open: its file may be gone, or closed to the user that the run goes on as, when a host needs it.
#[derive(Debug)]
pub(super) struct Copy {
    file: File,
    hash: String,
}

impl Copy {
    /// Opens and hashes it.
    pub(super) fn open() -> Result<Copy, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("this program cannot be read: {e}"));
        let mut file = File::open("/proc/self/exe").map_err(failed)?;
        let (mut hash, mut chunk) = (Context::new(&SHA256), vec![0; 1 << 20]);
        loop {
            match file.read(&mut chunk).map_err(failed)? {
                0 => break,
                count => hash.update(chunk.get(..count).unwrap_or_default()),
            }
        }
        Ok(Copy { file, hash: hex(hash.finish().as_ref()) })
    }

    /// Puts a copy into `folder` on `host`, unless there is one, and returns its path. Whatever else lies under that name is replaced:
    /// what counts is the hash of what is there.
    pub(super) async fn put(&self, client: &Client, host: &Host, folder: &str) -> Result<String, Failure> {
        let (look, copy) = scripts(folder, &self.hash);
        if run(client.command(host, &look), host, LOOK).await?.trim() != "present" {
            let mut file = self.file.try_clone().map_err(Failure::failed)?;
            file.rewind().map_err(Failure::failed)?;
            let mut command = client.command(host, &copy);
            command.stdin(Stdio::from(file));
            run(command, host, COPY).await?;
        }
        Ok(path(folder, &self.hash))
    }
}

fn path(folder: &str, hash: &str) -> String {
    format!("{folder}/bin/testudo-{hash}")
}

/// One that says whether the copy is there, and one that takes it from standard input. Folder and hash have no character that a
/// shell would interpret.
fn scripts(folder: &str, hash: &str) -> (String, String) {
    let path = path(folder, hash);
    let sum = |file: &str| format!("[ \"$(sha256sum < \"{file}\" | cut -c 1-64)\" = {hash} ]");
    let look = format!(
        "exec sh -c 'if [ -f \"{path}\" ] && [ -x \"{path}\" ] && {}; then echo present; else echo absent; fi'",
        sum(&path)
    );
    let copy = format!(
        "exec sh -c 'set -e; umask 077; mkdir -p \"{folder}/bin\"; t=\"{path}.$$\"; trap \"rm -f $t\" EXIT; cat > \"$t\"; \
         {}; chmod 700 \"$t\"; mv -f \"$t\" \"{path}\"'",
        sum("$t")
    );
    (look, copy)
}

/// Runs a command to its end, and returns what it printed.
async fn run(mut command: Command, host: &Host, patience: Duration) -> Result<String, Failure> {
    let failed = |why: &str| Failure::failed(format!("{}: {why}", host.name));
    let child = command.spawn().map_err(|e| failed(&format!("`ssh` cannot be started: {e}")))?;
    let output = match tokio::time::timeout(patience, child.wait_with_output()).await {
        Ok(output) => output.map_err(|e| failed(&e.to_string()))?,
        Err(_) => return Err(failed(&format!("it did not answer within {} s", patience.as_secs()))),
    };
    let said = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.chars().filter(|c| *c == '\n' || !c.is_control()).take(2000).collect()
    };
    match output.status.success() {
        true => Ok(said(&output.stdout)),
        false => Err(failed(&format!(
            "{}\n{}",
            super::super::nodes::describe(output.status),
            said(&output.stderr)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn shell(folder: &std::path::Path, script: &str, input: &[u8]) -> (bool, String) {
        let path = folder.join("input");
        std::fs::write(&path, input).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder).stdin(File::open(path).unwrap());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What a host's shell does with the two scripts: only what has the hash is there, or gets there.
    #[test]
    fn a_copy_is_there_only_if_it_has_the_hash() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let program = b"a program".as_slice();
        let mut context = Context::new(&SHA256);
        context.update(program);
        let hash = hex(context.finish().as_ref());
        let (look, copy) = scripts(".testudo", &hash);
        let looked = || shell(folder.path(), &look, b"").1;
        assert_eq!(looked(), "absent");
        assert!(!shell(folder.path(), &copy, b"half a pro").0, "a copy that was cut");
        assert_eq!(looked(), "absent");
        assert!(shell(folder.path(), &copy, program).0);
        assert_eq!(looked(), "present");
        let at = folder.path().join(path(".testudo", &hash));
        assert_eq!(std::fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o700);
        let bin = std::fs::read_dir(at.parent().unwrap()).unwrap().count();
        assert_eq!(bin, 1, "nothing half done is left");
        std::fs::write(&at, "another program").unwrap();
        assert_eq!(looked(), "absent", "changed since");
        assert!(shell(folder.path(), &copy, program).0 && looked() == "present");
    }
}
