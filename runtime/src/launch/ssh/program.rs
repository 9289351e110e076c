//! The program on a host: named by the cluster file, or a copy of this one, called by its hash.

use std::fs::File;
use std::io::{Read, Seek as _};
use std::process::Stdio;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::client::Client;
use crate::config::Host;
use crate::error::Failure;
use crate::signing::hex;

/// How long a host may take to say whether it has the program.
const LOOK: Duration = Duration::from_secs(60);

/// How long a copy may take.
const COPY: Duration = Duration::from_secs(900);

/// Bytes that a host may say on standard output, and as many on standard error.
const SAID_MOST: u64 = 64 << 10;

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
/// shell would interpret. Both refuse folders in which somebody else could put another program between the look and the start.
fn scripts(folder: &str, hash: &str) -> (String, String) {
    let path = path(folder, hash);
    let sum = |file: &str| format!("[ \"$(sha256sum < \"{file}\" | cut -c 1-64)\" = {hash} ]");
    let own = format!(
        "own() {{ for d in \"{folder}/.\" \"{folder}/bin\"; do \
         [ -n \"$(find \"$d\" -prune -type d -user \"$(id -u)\" ! -perm -020 ! -perm -002)\" ] || \
         {{ echo \"$d: this user must own it, and nobody else may write to it\" >&2; exit 1; }}; done; }}"
    );
    let look = format!(
        "exec sh -c '{own}; if [ -e \"{folder}/bin\" ]; then own; fi; \
         if [ -f \"{path}\" ] && [ -x \"{path}\" ] && {}; then echo present; else echo absent; fi'",
        sum(&path)
    );
    let copy = format!(
        "exec sh -c 'set -e; {own}; umask 077; mkdir -p \"{folder}/bin\"; own; t=\"{path}.$$\"; trap \"rm -f $t\" EXIT; cat > \"$t\"; \
         {}; chmod 700 \"$t\"; mv -f \"$t\" \"{path}\"'",
        sum("$t")
    );
    (look, copy)
}

/// Runs a command to its end, and returns what it printed. One that takes too long, or says too much, is killed.
async fn run(mut command: Command, host: &Host, patience: Duration) -> Result<String, Failure> {
    let failed = |why: &str| Failure::failed(format!("{}: {why}", host.name));
    let mut child = command.spawn().map_err(|e| failed(&format!("`ssh` cannot be started: {e}")))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    // The child is killed when it is dropped.
    let ended = async { tokio::try_join!(child.wait(), bounded(out), bounded(err)) };
    let (status, out, err) = match tokio::time::timeout(patience, ended).await {
        Ok(ended) => ended.map_err(|e| failed(&e.to_string()))?,
        Err(_) => return Err(failed(&format!("it did not answer within {} s", patience.as_secs()))),
    };
    let said = |bytes: &[u8]| -> String {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.chars().filter(|c| *c == '\n' || !c.is_control()).take(2000).collect()
    };
    match status.success() {
        true => Ok(said(&out)),
        false => Err(failed(&format!("{}\n{}", super::super::nodes::describe(status), said(&err)))),
    }
}

/// All of it, or an error once it is more than [`SAID_MOST`] bytes.
async fn bounded(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(SAID_MOST + 1).read_to_end(&mut bytes).await?;
    }
    match bytes.len() as u64 {
        0..=SAID_MOST => Ok(bytes),
        _ => Err(std::io::Error::other(format!("it said more than {SAID_MOST} bytes"))),
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

    /// Whoever may write to the folder could put another program there between the look and the start.
    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let (look, copy) = scripts(".testudo", &"0".repeat(64));
        let bin = place.path().join(".testudo/bin");
        std::fs::create_dir_all(&bin).unwrap();
        let mode = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (open, others) in [(&bin, 0o770), (&bin, 0o707), (&bin.parent().unwrap().to_owned(), 0o777)] {
            mode(bin.parent().unwrap(), 0o755);
            mode(&bin, 0o755);
            assert_eq!(shell(place.path(), &look, b""), (true, "absent".to_owned()));
            mode(open, others);
            assert!(!shell(place.path(), &look, b"").0 && !shell(place.path(), &copy, b"").0, "{others:o}");
        }
    }

    /// A host that answers without end is killed, and costs no more memory than that.
    #[tokio::test]
    async fn a_host_that_says_without_end_is_killed() {
        let host = Host::parse("gpu1").unwrap();
        for said in ["yes", "yes >&2"] {
            let mut command = tokio::process::Command::new("sh");
            command.args(["-c", said]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.kill_on_drop(true);
            let failure = run(command, &host, Duration::from_secs(20)).await.unwrap_err();
            assert!(failure.message.contains("more than 65536 bytes"), "{}", failure.message);
        }
    }
}
