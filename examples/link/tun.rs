//! A TUN device in a network namespace of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long to wait at most before looking whether to end.
const LOOK: Duration = Duration::from_millis(100);

/// The device; dropping it removes the namespace.
pub struct Tun {
    file: File,
    namespace: String,
}

impl Tun {
    /// Makes the namespace `name` with a device of that name, which has `address`.
    pub fn in_namespace(name: &str, address: &str) -> io::Result<Self> {
        let _ = ip(&["netns", "delete", name]);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        attach(&file, name)?;
        ip(&["netns", "add", name])?;
        // From here on dropping cleans up.
        let tun = Self { file, namespace: name.to_owned() };
        ip(&["link", "set", name, "netns", name])?;
        ip(&["-n", name, "address", "add", address, "dev", name])?;
        // The device's own queue must not be the one that overflows.
        let up = ["link", "set", name, "mtu", "1500", "txqueuelen", "20000", "up"];
        ip(&[["-n", name].as_slice(), &up].concat())?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(tun)
    }

    /// The next packet that was sent into the device.
    pub fn read(&self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(packet) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets `packet` come out of the device. What the system has no room for is lost, as on a network.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        match (&self.file).write(packet) {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.namespace]);
    }
}

fn is_transient(error: &io::Error) -> bool {
    let codes = [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM, libc::EIO, libc::EINVAL];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Makes `file` the device `name`: whole IP packets, nothing in front of them, no offloads.
#[expect(unsafe_code, reason = "std has no ioctl")]
fn attach(file: &File, name: &str) -> io::Result<()> {
    const IFF_TUN: i16 = 0x0001;
    const IFF_NO_PI: i16 = 0x1000;
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    // `struct ifreq`: a name of 16 bytes, flags, and what other requests use.
    let mut request = [0u8; 40];
    for (to, from) in request.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: the descriptor is open, and the kernel reads and writes no more than the 40 bytes of an
    // ifreq, which `request` has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Waits until one of `devices` has a packet, or until `until`.
#[expect(unsafe_code, reason = "poll with less than milliseconds is in no dependency")]
pub fn wait(devices: [&Tun; 2], until: Option<Instant>) -> io::Result<()> {
    let left = until.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
    let mut polled = devices.map(|device| libc::pollfd {
        fd: device.file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
    // SAFETY: `polled` and `timeout` outlive the call, the count is that of the array, and a null
    // signal mask leaves the signals as they are.
    let result =
        unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const timeout, std::ptr::null()) };
    match io::Error::last_os_error() {
        error if result < 0 && error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

fn ip(words: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {}: {} (as root?)", words.join(" "), said.trim())))
}
