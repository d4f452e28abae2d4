//! `Identity`: who a server is.

use napi::bindgen_prelude::{Buffer, Unknown};
use napi_derive::napi;

use super::argument::{bytes, optional_string, string};
use super::error::{Code, invalid};
use super::json::Json;
use super::life::Life;
use crate::identity;

/// Who this server is: an ed25519 key pair, made when the data directory is first opened and kept in its
/// `keypair.json`. From `node.identity`.
#[napi]
pub struct Identity {
    identity: identity::Identity,
    life: Life,
}

impl Identity {
    pub(super) fn new(identity: identity::Identity, life: Life) -> Self {
        Self { identity, life }
    }
}

#[napi]
impl Identity {
    /// The public key as 52 z32 characters: what other servers know this one by.
    #[napi(getter)]
    pub fn public_key(&self) -> String {
        self.identity.public_key_text()
    }

    /// The 32 bytes of the public key; a copy.
    #[napi(getter)]
    pub fn bytes(&self) -> Buffer {
        self.identity.bytes().to_vec().into()
    }

    /// The key in a form that two people compare over the phone: 8 groups of 4 characters.
    #[napi(getter)]
    pub fn fingerprint(&self) -> String {
        self.identity.fingerprint()
    }

    /// The link that adds this server elsewhere: `alex://peer/<key>?name=<nickname>`.
    #[napi(ts_args_type = "nickname?: string")]
    pub fn invite_link(&self, nickname: Unknown<'_>) -> napi::Result<String, Code> {
        self.life.check()?;
        Ok(self.identity.invite_link(optional_string(nickname, "nickname")?.as_deref()))
    }

    /// The invite link as a QR code: an SVG document, or lines of text for a terminal. Throws
    /// `ERR_INVALID_ARGUMENT` when the nickname is too long for one.
    #[napi(ts_args_type = "format?: 'svg' | 'terminal', nickname?: string")]
    pub fn qr(&self, format: Unknown<'_>, nickname: Unknown<'_>) -> napi::Result<String, Code> {
        self.life.check()?;
        let nickname = optional_string(nickname, "nickname")?;
        Ok(match optional_string(format, "format")?.as_deref() {
            None | Some("svg") => self.identity.qr_svg(nickname.as_deref())?,
            Some("terminal") => self.identity.qr_terminal(nickname.as_deref())?,
            Some(_) => return Err(invalid("format must be 'svg' or 'terminal'").into()),
        })
    }

    /// A detached ed25519 signature (64 bytes) over the bytes.
    #[napi(ts_args_type = "message: Uint8Array")]
    pub fn sign(&self, message: Unknown<'_>) -> napi::Result<Buffer, Code> {
        self.life.check()?;
        Ok(self.identity.sign(&bytes(message, "message")?).to_vec().into())
    }

    /// Whether the signature is that of the key's owner over the bytes. The key may be z32, hex or a
    /// link; throws `ERR_INVALID_KEY` when it is none.
    #[napi(ts_args_type = "key: string, message: Uint8Array, signature: Uint8Array")]
    pub fn verify(
        key: Unknown<'_>,
        message: Unknown<'_>,
        signature: Unknown<'_>,
    ) -> napi::Result<bool, Code> {
        let key = parse(&string(key, "key")?)?.key;
        let (message, signature) = (bytes(message, "message")?, bytes(signature, "signature")?);
        Ok(identity::Identity::verify(&key, &message, &signature))
    }

    /// Reads the one key in what a person typed or pasted, as z32, hex, or in an invite, `hyper://` or
    /// `pear://` link; also broken over lines, in quotes, or in a sentence. Gives the key as z32, and the
    /// nickname that the link suggests. Throws `ERR_INVALID_KEY` with what is wrong.
    #[napi(ts_args_type = "text: string", ts_return_type = "ParsedKey")]
    pub fn parse(text: Unknown<'_>) -> napi::Result<Json, Code> {
        let parsed = parse(&string(text, "text")?)?;
        let shown = serde_json::json!({ "key": parsed.key.to_z32(), "nickname": parsed.nickname });
        Ok(Json::new(&shown)?)
    }
}

fn parse(text: &str) -> crate::error::Result<identity::ParsedKey> {
    Ok(identity::parse_key(text)?)
}
