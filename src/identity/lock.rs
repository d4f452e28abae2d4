//! One process at a time in a data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, ErrorCode};

/// The file whose lock is the directory's.
const FILE: &str = "lock";

/// Why the data directory could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody has it open.
    #[error("{}", held(*.pid))]
    Held {
        /// The process that holds it, when it could be read.
        pid: Option<u32>,
    },
    /// The file could not be created or locked.
    #[error(
        "the data directory cannot be locked ({0}): check that it exists on a local disk and is writable"
    )]
    Io(#[source] std::io::Error),
}

fn held(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => {
            "this process already has the data directory open: close the other node first, or share it"
                .to_owned()
        }
        Some(pid) => format!(
            "process {pid} has the data directory open: stop it, or use another data directory"
        ),
        None => "another process has the data directory open: stop it, or use another data directory"
            .to_owned(),
    }
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        match &error {
            LockError::Held { .. } => Self::new(ErrorCode::Locked, error.to_string()),
            LockError::Io(io) => {
                let code = Self::from(std::io::Error::from(io.kind())).code;
                Self::new(code, error.to_string())
            }
        }
    }
}

/// Holds `<dataDir>/lock` until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Creates `data_dir` if it is missing (mode 0700) and locks it. Blocks on disk, never on the other
    /// process.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] while another node, in this process or another, has the directory.
    pub fn acquire(data_dir: &Path) -> Result<Self, LockError> {
        create_directory(data_dir).map_err(LockError::Io)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(data_dir.join(FILE)).map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // Only for the other process's message: that it cannot be written is no reason to stop.
        if let Err(error) = write_pid(&mut file) {
            tracing::debug!(%error, "the lock file does not say who holds it");
        }
        Ok(Self { _file: file })
    }
}

fn create_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let first = DataDirLock::acquire(&path).unwrap();
        let refused = DataDirLock::acquire(&path).unwrap_err();
        assert!(matches!(refused, LockError::Held { pid: Some(pid) } if pid == std::process::id()));
        assert_eq!(Error::from(refused).code, ErrorCode::Locked);
        drop(first);
        DataDirLock::acquire(&path).unwrap();
    }

    #[test]
    fn the_message_names_the_process() {
        assert!(held(Some(1)).contains("process 1 "));
        assert!(held(Some(std::process::id())).contains("this process"));
    }
}
