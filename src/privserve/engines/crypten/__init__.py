"""The reference engine: CrypTen's protocols on our channels."""
