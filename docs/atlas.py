"""The page for clinicians: each finding's definition beside the phantom without and with it."""
from io import BytesIO
from pathlib import Path

from PIL import Image

from cxr_learn.findings import FINDINGS
from cxr_learn.observer import draw_one, outlined

SIDE, GAP, SEVERITY = 256, 8, .8   # pixels, pixels; clear cases, from 0 (barely there) to 1
# chests in which the finding lies where it can be seen well
PATIENTS = {'consolidation': 4, 'pneumonia': 2, 'infiltration': 11, 'atelectasis': 9, 'diffuse interstitial pattern': 5,
            'bilateral peripheral ground-glass': 9, 'edema': 6, 'fibrosis': 12, 'cardiomegaly': 6, 'nodule': 2, 'mass': 4,
            'hernia': 1, 'effusion': 7, 'pneumothorax': 2, 'pleural thickening': 11, 'emphysema': 3}
OPENING = '''# Atlas of the phantom

> What each finding looks like: the definition, and the same simulated chest without it, with it, and with its outline

**Not for clinical use.** These are simulations, drawn as clear cases from the definitions beside them; no radiologist has
approved them. The cohorts of the course hold milder ones, too. What else the definition covers, the sources in full and how each finding is
made are in the chapter [Findings](chapters/findings).
'''


def build_atlas(folder):
    "Write the pictures and return the page's text."
    pictures = Path(folder)/'atlas'
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [OPENING]
    for finding, definition in FINDINGS.items():
        if finding == 'normal': continue
        file = pictures/f"{finding.replace(' ', '-')}.jpg"
        triptych(finding).save(file, quality=88)
        parts.append(f'## {finding.capitalize()}\n\n{definition[0].upper()}{definition[1:]}.\n\n'
                     f'![A chest without {finding}, the same chest with it, and with its outline](atlas/{file.name})\n')
    return '\n'.join(parts)


def triptych(finding):
    "Without, with, and outlined, side by side."
    patient = PATIENTS[finding]
    without, _, _ = draw_one((), SEVERITY, patient, size=SIDE)
    image, mask, _ = draw_one((finding,), SEVERITY, patient, size=SIDE)
    pictures = Image.fromarray(without.numpy()), Image.fromarray(image.numpy()), Image.open(BytesIO(outlined(image, mask)))
    strip = Image.new('RGB', (3 * SIDE + 2 * GAP, SIDE), 'white')
    for column, picture in enumerate(pictures): strip.paste(picture, (column * (SIDE + GAP), 0))
    return strip
