"""Every number that the pages quote from real runs is the ledger's"""
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

NBS = Path(__file__).parent.parent/'nbs'
QUOTES = pd.read_csv(NBS/'results'/'quotes.csv', dtype=str, keep_default_na=False)
MEASURED = re.compile(r'^## What (we measured|held)', re.MULTILINE)  # under these headings each decimal number is a quote
NUMBER = re.compile(r'(?<![\w.])[-+]?\d*\.\d+')


def prose(page):
    "The markdown of a page, cell by cell"
    return [cell.source for cell in nbformat.read(NBS/page, 4).cells if cell.cell_type == 'markdown']


@pytest.mark.parametrize('quote', QUOTES.to_dict('records'), ids=lambda quote: f"{quote['page'][:3]} {quote['number']}")
def test_a_quoted_number_is_the_ledgers(quote):
    rows = pd.read_csv(NBS/'results'/quote['file']).query(quote['row'])
    assert len(rows) == 1, f"{len(rows)} rows of {quote['file']} fit {quote['row']}"
    value = float(rows[quote['column']].iloc[0]) * float(quote['times'] or 1)
    decimals = len(quote['number'].partition('.')[2])
    assert abs(value - float(quote['number'])) <= .5000001 * 10**-decimals, f"{quote['number']} is quoted, {value} was measured"


@pytest.mark.parametrize('quote', QUOTES.to_dict('records'), ids=lambda quote: f"{quote['page'][:3]} {quote['number']}")
def test_a_quote_stands_on_its_page(quote):
    assert quote['number'].lstrip('+-') in quote['quote']
    assert any(quote['quote'] in ' '.join(source.split()) for source in prose(quote['page']))


@pytest.mark.parametrize('page', sorted(file.name for file in NBS.glob('16*.ipynb')))
def test_no_number_is_quoted_without_its_source(page):
    "Under a heading of measured results every decimal number of the prose is in the list of quotes"
    inside, found = False, []
    for source in prose(page):
        for part in re.split(r'(?m)^(?=## )', source):
            if part.startswith('## '): inside = bool(MEASURED.match(part))
            if inside: found += NUMBER.findall(re.sub(r'https?:\S+', '', part))  # an address is no result
    known = QUOTES['number'][QUOTES['page'] == page].str.lstrip('+-').tolist()
    assert not [number for number in found if number.lstrip('+-') not in known]
