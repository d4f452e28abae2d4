//! A text as a QR code, for a page and for a terminal.

use qrcode::render::{svg, unicode};
use qrcode::{EcLevel, QrCode};

use crate::error::{Error, ErrorCode};

/// Pixels per side of the SVG at least; it scales.
const SVG_SIZE: u32 = 256;

fn code(text: &str) -> Result<QrCode, Error> {
    QrCode::with_error_correction_level(text, EcLevel::M).map_err(|_| {
        Error::new(
            ErrorCode::InvalidArgument,
            "the text is too long for a QR code: shorten the name",
        )
    })
}

/// `text` as an SVG document: black on white, with the quiet zone around it.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` when the text does not fit into a QR code.
pub fn qr_svg(text: &str) -> Result<String, Error> {
    Ok(code(text)?
        .render::<svg::Color<'_>>()
        .min_dimensions(SVG_SIZE, SVG_SIZE)
        .dark_color(svg::Color("#000000"))
        .light_color(svg::Color("#ffffff"))
        .build())
}

/// `text` as lines of Unicode half blocks, two modules a character. Light on dark: a terminal's
/// background is taken to be dark, and readers take both.
///
/// # Errors
///
/// `ERR_INVALID_ARGUMENT` when the text does not fit into a QR code.
pub fn qr_terminal(text: &str) -> Result<String, Error> {
    Ok(code(text)?
        .render::<unicode::Dense1x2>()
        .dark_color(unicode::Dense1x2::Light)
        .light_color(unicode::Dense1x2::Dark)
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::KeyPair;
    use crate::identity::invite_link;

    #[test]
    fn an_invite_link_becomes_both_kinds_of_code() {
        let name = "é".repeat(64);
        let link = invite_link(&KeyPair::from_seed(&[1; 32]).public_key(), Some(&name));
        let svg = qr_svg(&link).unwrap();
        assert!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>"));
        let text = qr_terminal(&link).unwrap();
        assert!(text.contains('█') && text.contains('▀'));
        let widths: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]));
    }

    #[test]
    fn a_text_that_does_not_fit_is_refused() {
        assert_eq!(qr_svg(&"x".repeat(5000)).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
