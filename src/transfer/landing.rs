//! A whole, verified file goes to its place: synced, under a safe name, never over another file.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::filename;
use crate::error::{Error, ErrorCode, Result};

/// How many names are tried before giving up.
const MAX_NAMES: u32 = 999;

/// The folder and the name that a book goes to.
///
/// `save_to` is the receiver's choice: an existing folder, or a path that ends with a separator, is a
/// folder; anything else is the whole path. Without it, the book goes to `default_folder`.
pub(super) fn target(
    save_to: Option<&Path>,
    default_folder: &Path,
    name: String,
) -> (PathBuf, String) {
    let Some(path) = save_to else { return (default_folder.to_owned(), name) };
    let ends_with_separator = path
        .as_os_str()
        .as_encoded_bytes()
        .last()
        .is_some_and(|b| std::path::is_separator(*b as char));
    if ends_with_separator || path.is_dir() {
        return (path.to_owned(), name);
    }
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(chosen)) => (folder.to_owned(), chosen.to_string_lossy().into_owned()),
        _ => (path.to_owned(), name),
    }
}

/// The first of `name`, `name (2)`, … that does not exist in `folder` and is not `taken`. Creates the folder.
pub(super) fn free_path(folder: &Path, name: &str, taken: &HashSet<PathBuf>) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(|error| folder_error(folder, &error))?;
    let is_free = |path: &PathBuf| !taken.contains(path) && is_absent(path);
    (1..=MAX_NAMES)
        .map(|n| folder.join(filename::numbered(name, n)))
        .find(is_free)
        .ok_or_else(|| {
            let folder = folder.display();
            let what = format!(
                "{folder} has {MAX_NAMES} files named as {name:?}: move some of them away, or choose \
                 another saveTo, then resume"
            );
            Error::new(ErrorCode::Io, what)
        })
}

/// Moves `part` to `path`. Afterwards both the file and its name are on disk. Fails with
/// [`io::ErrorKind::AlreadyExists`] rather than replace a file.
pub(super) fn place(part: &Path, path: &Path) -> io::Result<()> {
    sync(part)?;
    move_to(part, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// As [`place`] for a file that was synced and a folder that will be.
pub(super) fn move_to(part: &Path, path: &Path) -> io::Result<()> {
    match move_new(part, path) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let near = near_path(part, path);
            let copied = copy_synced(part, &near).and_then(|()| move_new(&near, path));
            if copied.is_err() {
                // The error that matters is the one above.
                let _ = fs::remove_file(&near);
            }
            copied?;
            fs::remove_file(part)
        }
        other => other,
    }
}

/// Deletes what a crash can leave of moving `part` to `path`: the partial file itself, and a copy beside
/// `path` on another file system.
pub(super) fn clear(part: &Path, path: &Path) -> io::Result<()> {
    remove(part)?;
    remove_copy(part, path)
}

/// Deletes the copy beside `path` that a crash can leave of moving `part` there.
pub(super) fn remove_copy(part: &Path, path: &Path) -> io::Result<()> {
    remove(&near_path(part, path))
}

/// Deletes a file if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    // Nearly always it is not, and deleting would wait for whoever changes the folder.
    if is_absent(path) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether nothing has this name, not even a link to nowhere.
fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A hidden file beside `path`, named after the transfer.
fn near_path(part: &Path, path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(part.file_name().unwrap_or_default());
    path.with_file_name(name)
}

fn copy_synced(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    sync(to)
}

/// Renames without replacing.
#[cfg(target_os = "linux")]
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot do that.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_new(from, to),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    link_new(from, to)
}

/// A hard link is the one portable way that cannot race; file systems without links get a check and a
/// rename.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists
                    | io::ErrorKind::CrossesDevices
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::StorageFull
            ) =>
        {
            Err(error)
        }
        Err(_) if fs::symlink_metadata(to).is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    // Windows flushes only what is open for writing.
    File::options().read(true).write(true).open(path)?.sync_all()
}

/// Has the system begin to write a file that was just written to. Where there are several, the disk is busy
/// with the next ones while one is synced.
#[cfg(target_os = "linux")]
pub(super) fn begin_writing(file: &File) {
    // Linux begins to write what it cannot drop yet. Only advice: the sync says what came of it.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
pub(super) fn begin_writing(_file: &File) {}

/// Brings the names in a folder to disk.
#[cfg(unix)]
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(()) // there is no such call; NTFS journals the name
}

/// Makes the folder that a book is to go to, and looks whether files can be made there: the book is not to be
/// fetched first.
pub(super) fn prepare(folder: &Path) -> Result<()> {
    let can_write = fs::create_dir_all(folder).and_then(|()| check_access(folder));
    can_write.map_err(|error| folder_error(folder, &error))?;
    // What counts no blocks may take no files either, as what the system shows of itself.
    if fs4::total_space(folder).is_ok_and(|size| size > 0) {
        return Ok(());
    }
    let probe = folder.join(format!(".{}.part", z32::encode(&crate::crypto::random::<16>())));
    let probed = File::create_new(&probe).and_then(|_| fs::remove_file(&probe));
    probed.map_err(|error| folder_error(folder, &error))
}

/// Whether files may be made in `folder`, as far as that can be told without making one.
#[cfg(unix)]
fn check_access(folder: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

#[cfg(not(unix))]
fn check_access(_folder: &Path) -> io::Result<()> {
    Ok(()) // there it is a matter of lists and rights; making the file will tell
}

/// Why books cannot go to `folder`, and what to do about it.
fn folder_error(folder: &Path, error: &io::Error) -> Error {
    use io::ErrorKind;
    let code = Error::from(io::Error::from(error.kind())).code;
    if code == ErrorCode::DiskFull {
        let folder = folder.display();
        let what = format!("the disk that holds {folder} is full: make room on it, then resume");
        return Error::new(code, what);
    }
    let why = match error.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "a file is where a folder should be",
        ErrorKind::PermissionDenied => "this program may not write there",
        ErrorKind::ReadOnlyFilesystem => "the disk can only be read",
        _ => "the system refused it",
    };
    let folder = folder.display();
    Error::new(
        code,
        format!(
            "the book cannot be saved in {folder}: {why} ({error}). See to it that the folder exists and \
             can be written to, or request the book again with another saveTo"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_file_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let (part, taken) = (dir.path().join("x.part"), dir.path().join("a.epub"));
        file(&part, "new");
        file(&taken, "old");
        let refused = place(&part, &taken).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        let mut taken_too = HashSet::new();
        let free = free_path(dir.path(), "a.epub", &taken_too).unwrap();
        assert_eq!(free.file_name().unwrap(), "a (2).epub");
        taken_too.insert(free.clone());
        let next = free_path(dir.path(), "a.epub", &taken_too).unwrap();
        assert_eq!(next.file_name().unwrap(), "a (3).epub");
        place(&part, &free).unwrap();
        assert_eq!(fs::read_to_string(&taken).unwrap(), "old");
        assert_eq!(fs::read_to_string(&free).unwrap(), "new");
        assert!(!part.exists());
    }

    #[test]
    fn a_file_system_that_only_links_never_replaces_either() {
        let dir = tempfile::tempdir().unwrap();
        let (part, taken) = (dir.path().join("x.part"), dir.path().join("a.epub"));
        file(&part, "new");
        file(&taken, "old");
        assert_eq!(link_new(&part, &taken).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let free = dir.path().join("b.epub");
        link_new(&part, &free).unwrap();
        assert_eq!(fs::read_to_string(&free).unwrap(), "new");
        assert!(!part.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_link_counts_as_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("a.epub")).unwrap();
        let free = free_path(dir.path(), "a.epub", &HashSet::new()).unwrap();
        assert_eq!(free.file_name().unwrap(), "a (2).epub");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_moves_across_devices() {
        let here = tempfile::tempdir().unwrap();
        let Ok(there) = tempfile::tempdir_in("/dev/shm") else { return };
        let (part, path) = (here.path().join("x.part"), there.path().join("a.epub"));
        file(&part, "book");
        place(&part, &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "book");
        assert!(!part.exists());
        assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
    }

    /// Whatever stands where the folder should be, it is not said that the disk is full.
    #[test]
    fn a_folder_that_cannot_be_made_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("file");
        file(&in_the_way, "x");
        let mut folders = vec![in_the_way.clone(), in_the_way.join("books")];
        let system = ["/proc/books", "/proc/self", "/dev/null/books", "/sys/books"];
        folders.extend(
            system
                .map(PathBuf::from)
                .into_iter()
                .filter(|it| it.ancestors().nth(1).is_some_and(Path::exists)),
        );
        for folder in folders {
            let refused = prepare(&folder).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Io, "{refused}");
            let names_it = refused.message.contains(&folder.display().to_string());
            assert!(names_it && refused.message.contains("saveTo"), "{refused}");
            assert!(!refused.message.contains("full"), "{refused}");
        }
        let refused = free_path(&in_the_way, "a.epub", &HashSet::new()).unwrap_err();
        assert!(refused.message.contains("a file is where a folder should be"), "{refused}");
    }

    #[test]
    fn a_folder_is_made_and_nothing_is_left_of_looking() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a").join("b");
        prepare(&folder).unwrap();
        assert!(folder.is_dir());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_left_of_a_move_that_a_crash_cut_short() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (part, path) = (here.path().join("x.part"), there.path().join("a.epub"));
        file(&part, "book");
        file(&path, "book");
        file(&near_path(&part, &path), "bo");
        clear(&part, &path).unwrap();
        clear(&part, &path).unwrap();
        assert!(path.exists() && !part.exists());
        assert_eq!(fs::read_dir(there.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_receiver_chooses_a_folder_or_a_whole_path() {
        let dir = tempfile::tempdir().unwrap();
        let books = Path::new("books");
        let choose = |save_to: Option<&Path>| target(save_to, books, "n.epub".into());
        assert_eq!(choose(None), (books.to_owned(), "n.epub".into()));
        assert_eq!(choose(Some(dir.path())), (dir.path().to_owned(), "n.epub".into()));
        let slash = PathBuf::from(format!("{}/new/", dir.path().display()));
        assert_eq!(choose(Some(&slash)), (slash.clone(), "n.epub".into()));
        let whole = dir.path().join("mine.epub");
        assert_eq!(choose(Some(&whole)), (dir.path().to_owned(), "mine.epub".into()));
    }
}
