"""Small documents that tests make: PDFs of every temper, and a quick embedder."""

import hashlib
from pathlib import Path

import numpy as np

from mixtral_rag.language import terms


class BagEmbedder:
    """Embeds by hashed terms: a fast stand-in where the test is not about embedding."""

    fingerprint = "bag:1:1024"
    max_tokens = 512
    relevant = 0.2

    def count(self, text):
        return max(1, len(text) // 2)

    def passages(self, texts):
        return np.stack([self._vector(t) for t in texts])

    def query(self, text):
        return self.passages([text])

    def _vector(self, text):
        vector = np.full(1024, 1e-3, np.float32)
        for term in terms(text):
            vector[int(hashlib.md5(term.encode()).hexdigest(), 16) % 1024] += 1
        return vector / np.linalg.norm(vector)


def write_pdf(path: Path, pages: list[str], *, title: str = "", password: str | None = None):
    """A real PDF, one page for each text; with a password, encrypted."""
    from pypdf import PdfReader, PdfWriter
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    canvas = Canvas(str(path))
    canvas.setTitle(title)
    for text in pages:
        canvas.setFont("STSong-Light", 11)
        for i, line in enumerate(text.split("\n")):
            canvas.drawString(60, 780 - 16 * i, line)
        canvas.showPage()
    canvas.save()
    if password is not None:
        writer = PdfWriter(clone_from=PdfReader(path))
        writer.encrypt(password)
        writer.write(path)
    return path
