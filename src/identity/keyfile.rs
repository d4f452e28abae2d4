//! `keypair.json`: read, created once, never overwritten.
//!
//! `{"publicKey": hex, "secretKey": hex}`, the secret key as libsodium's 64 bytes (seed, then public
//! key), mode 0600.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::crypto::KeyPair;
use crate::error::{Error, ErrorCode};

const FILE: &str = "keypair.json";
const TEMPORARY: &str = "keypair.json.new";
const DATABASE: &str = "p2p.db";
/// A key file is some 250 bytes; more is not one.
const SIZE_LIMIT: u64 = 16 * 1024;

const RESTORE: &str = "restore it from a backup; to start over under a new key, which every friend has to \
                       add anew, move the data directory away";

/// Why the identity could not be read or created. Nothing was overwritten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The content is not a key pair.
    #[error("keypair.json is damaged ({0}): {RESTORE}")]
    Damaged(&'static str),
    /// There is a database, so there was an identity.
    #[error("keypair.json is missing, although p2p.db is there: {RESTORE}")]
    Missing,
    /// Others can read the file and that could not be changed.
    #[error(
        "other users can read keypair.json (mode {mode:o}) and that cannot be changed ({source}): run chmod 600 on it, as its owner"
    )]
    Permissions {
        /// The permission bits found.
        mode: u32,
        /// Why they stay.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error(
        "keypair.json cannot be {doing} ({source}): check the data directory's owner and free space"
    )]
    Io {
        /// `read` or `written`.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<KeyFileError> for Error {
    fn from(error: KeyFileError) -> Self {
        let code = match &error {
            KeyFileError::Damaged(_) | KeyFileError::Missing => ErrorCode::Corrupt,
            KeyFileError::Permissions { .. } => ErrorCode::Io,
            KeyFileError::Io { source, .. } => Self::from(io::Error::from(source.kind())).code,
        };
        Self::new(code, error.to_string())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyFile {
    public_key: String,
    secret_key: String,
}

/// The pair in `data_dir`; a new one when there is none and there never was.
pub(super) fn load_or_create(data_dir: &Path) -> Result<KeyPair, KeyFileError> {
    let path = data_dir.join(FILE);
    match File::open(&path) {
        Ok(file) => load(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if data_dir.join(DATABASE).exists() {
                return Err(KeyFileError::Missing);
            }
            let pair = KeyPair::generate();
            create(data_dir, &pair)
                .map_err(|source| KeyFileError::Io { doing: "written", source })?;
            tracing::info!(key = pair.public_key().short(), "created a new identity");
            Ok(pair)
        }
        Err(source) => Err(KeyFileError::Io { doing: "read", source }),
    }
}

/// The pair in `data_dir`, if there is one.
pub(super) fn load_if_there(data_dir: &Path) -> Result<Option<KeyPair>, KeyFileError> {
    match File::open(data_dir.join(FILE)) {
        Ok(file) => load(&file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeyFileError::Io { doing: "read", source }),
    }
}

/// Writes a pair where there is none.
pub(super) fn create_new(data_dir: &Path, pair: &KeyPair) -> Result<(), KeyFileError> {
    create(data_dir, pair).map_err(|source| KeyFileError::Io { doing: "written", source })
}

fn load(file: &File) -> Result<KeyPair, KeyFileError> {
    let failed = |source| KeyFileError::Io { doing: "read", source };
    restrict(file)?;
    let mut text = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut text).map_err(failed)?;
    if text.is_empty() {
        return Err(KeyFileError::Damaged("it is empty"));
    }
    if text.len() as u64 > SIZE_LIMIT {
        return Err(KeyFileError::Damaged("it is too long"));
    }
    let stored: KeyFile = serde_json::from_slice(&text).map_err(|_| {
        KeyFileError::Damaged("it is not JSON with the texts publicKey and secretKey")
    })?;
    let public: [u8; 32] = from_hex(&stored.public_key)
        .ok_or(KeyFileError::Damaged("publicKey is not 64 hex characters"))?;
    let secret: [u8; 64] = from_hex(&stored.secret_key)
        .ok_or(KeyFileError::Damaged("secretKey is not 128 hex characters"))?;
    let mut seed = [0; 32];
    seed.copy_from_slice(&secret[..32]);
    let pair = KeyPair::from_seed(&seed);
    if pair.secret_key() != secret {
        return Err(KeyFileError::Damaged("the two halves of secretKey do not belong together"));
    }
    if pair.public_key().as_bytes() != &public {
        return Err(KeyFileError::Damaged("publicKey does not belong to secretKey"));
    }
    Ok(pair)
}

/// Takes the file away from other users, if they could read or write it.
#[cfg(unix)]
fn restrict(file: &File) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| KeyFileError::Io { doing: "read", source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(|source| KeyFileError::Permissions { mode, source })?;
    tracing::warn!(
        mode = format!("{mode:o}"),
        "other users could read keypair.json; its mode is 600 now"
    );
    Ok(())
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // The Unix twin can fail.
fn restrict(_: &File) -> Result<(), KeyFileError> {
    Ok(())
}

/// Writes the pair so that after a crash there is the whole file or none.
fn create(data_dir: &Path, pair: &KeyPair) -> io::Result<()> {
    fs::create_dir_all(data_dir)?;
    let temporary = data_dir.join(TEMPORARY);
    // Left by a crash before its rename: its key was never used.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let content = KeyFile {
        public_key: to_hex(pair.public_key().as_bytes()),
        secret_key: to_hex(&pair.secret_key()),
    };
    let mut text = serde_json::to_vec_pretty(&content).map_err(io::Error::other)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, data_dir.join(FILE))?;
    sync_directory(data_dir)
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
#[allow(clippy::unnecessary_wraps)] // The Unix twin can fail.
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Exactly `N` bytes from `2 N` hex characters of either case.
pub(super) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged_with(content: &[u8]) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, content).unwrap();
        let error = load_or_create(dir.path()).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), content, "the file is left as it was");
        error.into()
    }

    #[test]
    fn what_is_created_has_libsodiums_form_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let pair = load_or_create(dir.path()).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(json["publicKey"].as_str().unwrap(), to_hex(pair.public_key().as_bytes()));
        let secret = json["secretKey"].as_str().unwrap();
        assert_eq!(secret.len(), 128);
        assert!(secret.ends_with(json["publicKey"].as_str().unwrap()));
        assert_eq!(load_or_create(dir.path()).unwrap().secret_key(), pair.secret_key());
        assert!(!dir.path().join(TEMPORARY).exists());
    }

    #[test]
    fn a_damaged_file_is_reported_and_left_alone() {
        let pair = KeyPair::from_seed(&[1; 32]);
        let other = KeyPair::from_seed(&[2; 32]);
        let file = |public: &[u8], secret: &[u8]| {
            format!(r#"{{"publicKey":"{}","secretKey":"{}"}}"#, to_hex(public), to_hex(secret))
        };
        let mut torn = pair.secret_key();
        torn[40] ^= 1;
        let contents = [
            String::new(),
            "{".to_owned(),
            r#"{"publicKey":1,"secretKey":2}"#.to_owned(),
            file(&[1; 31], &pair.secret_key()),
            file(pair.public_key().as_bytes(), &pair.secret_key()[..32]),
            file(other.public_key().as_bytes(), &pair.secret_key()),
            file(pair.public_key().as_bytes(), &torn),
            " ".repeat(20_000),
        ];
        for content in contents {
            let error = damaged_with(content.as_bytes());
            assert_eq!(error.code, ErrorCode::Corrupt, "{content}");
            assert!(error.message.contains("damaged"));
        }
    }

    #[test]
    fn a_lost_key_beside_a_database_is_reported_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DATABASE), "").unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(KeyFileError::Missing)));
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_stop_the_creation() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(TEMPORARY), "{\"publicKey\"").unwrap();
        load_or_create(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        load_or_create(dir.path()).unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create(dir.path()).unwrap();
        assert_eq!(mode(), 0o600);
    }
}
