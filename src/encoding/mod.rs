//! Compact encoding: the byte format of every message in the Hypercore stack.
//!
//! The reference is npm `compact-encoding`. Unsigned integers are one byte below 253; 253, 254 and
//! 255 announce a little-endian `u16`, `u32` or `u64`. Buffers and strings carry their length in
//! front. Decoding never allocates by a length from the wire: it returns slices of the input, and
//! arrays are bounded by the caller.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

/// Why bytes could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ended inside a value.
    #[error("the message ends inside a value")]
    Truncated,
    /// A length or count exceeds what the caller allows.
    #[error("a length of {got} exceeds the limit of {limit}")]
    TooLong {
        /// What the wire claimed.
        got: u64,
        /// What the caller allows.
        limit: u64,
    },
    /// A value is outside its domain: a bad tag, flag, version or UTF-8.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// What every decoder returns.
pub type Result<T, E = DecodeError> = std::result::Result<T, E>;

/// Appends compact-encoded values to a byte vector.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty writer with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// The bytes written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes were written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends the writing.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }

    /// A variable-length unsigned integer (`c.uint`).
    pub fn uint(&mut self, value: u64) -> &mut Self {
        match value {
            0..=0xfc => self.bytes.push(value as u8),
            0xfd..=0xffff => {
                self.bytes.push(0xfd);
                self.bytes.extend_from_slice(&(value as u16).to_le_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.bytes.push(0xfe);
                self.bytes.extend_from_slice(&(value as u32).to_le_bytes());
            }
            _ => {
                self.bytes.push(0xff);
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        self
    }

    /// One byte (`c.uint8`).
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// Two bytes, little-endian (`c.uint16`).
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes, little-endian (`c.uint32`).
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian (`c.uint64`).
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// One byte, 1 or 0 (`c.bool`).
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Bytes as they are, without a length (`c.raw`, `c.fixed`).
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length in front (`c.buffer`).
    pub fn buffer(&mut self, bytes: &[u8]) -> &mut Self {
        self.uint(bytes.len() as u64).raw(bytes)
    }

    /// UTF-8 with its byte length in front (`c.string`).
    pub fn string(&mut self, text: &str) -> &mut Self {
        self.buffer(text.as_bytes())
    }

    /// Four address bytes and a port (`compact-encoding-net` `ipv4Address`).
    pub fn ipv4_address(&mut self, address: SocketAddrV4) -> &mut Self {
        self.raw(&address.ip().octets()).u16(address.port())
    }

    /// Sixteen address bytes and a port (`compact-encoding-net` `ipv6Address`).
    pub fn ipv6_address(&mut self, address: SocketAddrV6) -> &mut Self {
        self.raw(&address.ip().octets()).u16(address.port())
    }
}

/// Reads compact-encoded values from a slice, front to back.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all bytes were read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All bytes that are left (`c.raw`).
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        let (front, back) = self.bytes.split_at(count);
        self.bytes = back;
        Ok(front)
    }

    /// Exactly `N` bytes as an array (`c.fixed32` and the like).
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A variable-length unsigned integer (`c.uint`). Non-minimal forms are accepted, as in the reference.
    pub fn uint(&mut self) -> Result<u64> {
        match self.u8()? {
            0xfd => Ok(u64::from(self.u16()?)),
            0xfe => Ok(u64::from(self.u32()?)),
            0xff => self.u64(),
            small => Ok(u64::from(small)),
        }
    }

    /// One byte (`c.uint8`).
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian (`c.uint16`).
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian (`c.uint32`).
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian (`c.uint64`).
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// One byte, true when it is 1 (`c.bool`).
    pub fn bool(&mut self) -> Result<bool> {
        Ok(self.u8()? == 1)
    }

    /// 32 bytes (`c.fixed32`).
    pub fn fixed32(&mut self) -> Result<[u8; 32]> {
        self.array()
    }

    /// Bytes with their length in front (`c.buffer`); empty when the length is 0.
    pub fn buffer(&mut self) -> Result<&'a [u8]> {
        let length = self.uint()?;
        let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
        self.take(length)
    }

    /// UTF-8 with its byte length in front (`c.string`).
    pub fn string(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.buffer()?).map_err(|_| DecodeError::Invalid("UTF-8"))
    }

    /// The number of elements of an array, refused above `limit`.
    pub fn count(&mut self, limit: usize) -> Result<usize> {
        let got = self.uint()?;
        if got > limit as u64 {
            return Err(DecodeError::TooLong { got, limit: limit as u64 });
        }
        Ok(got as usize)
    }

    /// An array of at most `limit` elements, each read by `element`.
    pub fn vec<T>(
        &mut self,
        limit: usize,
        mut element: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(limit)?;
        let mut out = Vec::with_capacity(count.min(self.remaining()));
        for _ in 0..count {
            out.push(element(self)?);
        }
        Ok(out)
    }

    /// Four address bytes and a port (`compact-encoding-net` `ipv4Address`).
    pub fn ipv4_address(&mut self) -> Result<SocketAddrV4> {
        let ip = Ipv4Addr::from(self.array::<4>()?);
        Ok(SocketAddrV4::new(ip, self.u16()?))
    }

    /// Sixteen address bytes and a port (`compact-encoding-net` `ipv6Address`).
    pub fn ipv6_address(&mut self) -> Result<SocketAddrV6> {
        let ip = Ipv6Addr::from(self.array::<16>()?);
        Ok(SocketAddrV6::new(ip, self.u16()?, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_the_bytes_of_the_reference() {
        let cases: [(u64, &[u8]); 6] = [
            (0, &[0]),
            (252, &[252]),
            (253, &[253, 253, 0]),
            (65535, &[253, 255, 255]),
            (65536, &[254, 0, 0, 1, 0]),
            (1 << 32, &[255, 0, 0, 0, 0, 1, 0, 0, 0]),
        ];
        for (value, bytes) in cases {
            assert_eq!(Writer::new().uint(value).as_slice(), bytes);
            assert_eq!(Reader::new(bytes).uint(), Ok(value));
        }
    }

    #[test]
    fn a_length_beyond_the_input_is_truncated_and_allocates_nothing() {
        assert_eq!(Reader::new(&[255; 9]).buffer(), Err(DecodeError::Truncated));
        assert_eq!(Reader::new(&[3, 1, 2]).buffer(), Err(DecodeError::Truncated));
        assert_eq!(
            Reader::new(&[9]).vec(8, Reader::u8),
            Err(DecodeError::TooLong { got: 9, limit: 8 })
        );
    }

    #[test]
    fn every_value_reads_back() {
        let mut writer = Writer::new();
        let v4: SocketAddrV4 = "10.1.2.3:4567".parse().unwrap();
        let v6: SocketAddrV6 = "[::1]:80".parse().unwrap();
        writer
            .u16(7)
            .u32(8)
            .u64(9)
            .bool(true)
            .string("é")
            .buffer(b"ab")
            .ipv4_address(v4)
            .ipv6_address(v6);
        let mut reader = Reader::new(writer.as_slice());
        assert_eq!(reader.u16(), Ok(7));
        assert_eq!(reader.u32(), Ok(8));
        assert_eq!(reader.u64(), Ok(9));
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.string(), Ok("é"));
        assert_eq!(reader.buffer(), Ok(&b"ab"[..]));
        assert_eq!(reader.ipv4_address(), Ok(v4));
        assert_eq!(reader.ipv6_address(), Ok(v6));
        assert!(reader.is_empty());
    }
}
