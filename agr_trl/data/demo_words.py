"""The vocabulary of the demo shop: kinds of products, their attributes, and the words for them."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of product; each field lists its choices, divided by bars."""

    names: str  # synonyms, the usual one first
    wider: str  # hypernyms: words that accept this kind among others
    sizes: str  # smallest and largest width or height in inches, or the names of bed sizes
    rooms: str
    materials: str
    features: str


SOFT = "velvet|linen|leather|faux leather|boucle|polyester"
WOOD = "oak|walnut|pine|teak|acacia"
METAL = "steel|iron|brass|aluminum"
BED = "twin|full|queen|king"

# fmt: off
KINDS = [
    Kind("sofa|couch|settee", "seating", "72|96", "living room|office|outdoor", SOFT,
         "tufted|storage|power"),
    Kind("loveseat|love seat|two seater", "sofa|couch|seating", "48|64",
         "living room|bedroom|outdoor", SOFT, "tufted|storage|power"),
    Kind("sectional|sectional sofa|corner sofa", "sofa|couch|seating", "90|130",
         "living room|outdoor", SOFT, "tufted|storage|power"),
    Kind("sleeper sofa|sofa bed|pull out couch|futon", "sofa|couch|seating", "66|90",
         "living room|office|bedroom", SOFT, "tufted|storage|usb"),
    Kind("armchair|accent chair|club chair", "chair|seating", "26|38",
         "living room|bedroom|office", SOFT + "|rattan", "tufted|swivel"),
    Kind("wingback chair|wing chair", "armchair|chair|seating", "26|36", "living room|bedroom",
         SOFT, "tufted|swivel"),
    Kind("recliner|reclining chair", "armchair|chair|seating", "30|42", "living room|kids room",
         SOFT, "power|swivel|usb"),
    Kind("office chair|desk chair|task chair", "chair|seating", "22|30", "office|kids room",
         "leather|faux leather|linen|polyester", "swivel|rolling|adjustable"),
    Kind("dining chair|side chair|kitchen chair", "chair|seating", "17|24",
         "dining room|kitchen|outdoor", SOFT + "|" + WOOD, "tufted|stackable|folding"),
    Kind("rocking chair|rocker|glider", "chair|seating", "24|34", "kids room|outdoor|living room",
         WOOD + "|linen|rattan", "folding|swivel"),
    Kind("bar stool|barstool|counter stool", "stool|seating", "14|22",
         "kitchen|dining room|outdoor", WOOD + "|steel|velvet|faux leather",
         "swivel|adjustable|stackable"),
    Kind("ottoman|footstool|pouf", "stool|seating", "16|40", "living room|bedroom|kids room",
         SOFT + "|jute", "storage|tufted|round"),
    Kind("bench|bench seat", "seating", "36|60", "entryway|dining room|outdoor|bedroom",
         WOOD + "|linen|velvet|iron", "storage|tufted|folding"),
    Kind("coffee table|cocktail table", "table", "30|56", "living room|outdoor",
         WOOD + "|marble|glass|steel", "storage|round|lift top|rolling"),
    Kind("end table|side table|accent table", "table", "14|26", "living room|bedroom|outdoor",
         WOOD + "|marble|glass|brass", "round|drawers|stackable|usb"),
    Kind("nightstand|bedside table|night table", "table", "16|28", "bedroom|kids room",
         WOOD + "|steel", "drawers|usb|led"),
    Kind("dining table|kitchen table|dinner table", "table", "36|96",
         "dining room|kitchen|outdoor", WOOD + "|marble|glass|concrete",
         "extendable|round|folding"),
    Kind("console table|entry table|sofa table", "table", "30|60", "entryway|living room",
         WOOD + "|iron|glass|marble", "drawers|storage"),
    Kind("writing desk|computer desk|secretary desk", "desk|workstation", "36|66",
         "office|bedroom|kids room", WOOD + "|glass|steel", "drawers|usb|folding"),
    Kind("standing desk|sit stand desk", "desk|workstation", "40|72", "office", WOOD + "|steel",
         "power|usb|rolling"),
    Kind("platform bed|low profile bed", "bed|bed frame", BED, "bedroom|kids room",
         SOFT + "|" + WOOD, "storage|tufted|led"),
    Kind("bunk bed|loft bed", "bed|bed frame", "twin|full", "kids room", WOOD + "|steel",
         "storage|led|drawers"),
    Kind("canopy bed|poster bed|four poster", "bed|bed frame", BED, "bedroom",
         WOOD + "|iron|steel", "storage|tufted"),
    Kind("daybed|day bed|trundle", "bed|bed frame", "twin|full", "bedroom|kids room|office",
         SOFT + "|iron|pine", "storage|tufted"),
    Kind("dresser|chest of drawers|bureau", "storage furniture", "30|66", "bedroom|kids room",
         WOOD + "|rattan", "lockable|led"),
    Kind("wardrobe|armoire|clothes closet", "storage furniture|closet", "30|60",
         "bedroom|entryway", WOOD + "|rattan", "lockable|drawers|led"),
    Kind("bookcase|bookshelf|shelving unit", "storage furniture|shelf", "20|60",
         "living room|office|kids room", WOOD + "|iron|steel", "drawers|led|folding"),
    Kind("sideboard|buffet|credenza", "storage furniture|cabinet", "40|72",
         "dining room|living room|kitchen", WOOD + "|rattan|marble", "drawers|lockable|led"),
    Kind("tv stand|media console|entertainment center", "storage furniture", "40|80",
         "living room|bedroom", WOOD + "|glass|steel", "drawers|led|usb"),
    Kind("shoe rack|shoe cabinet|shoe organizer", "storage furniture", "20|40", "entryway|bedroom",
         WOOD + "|steel|polyester", "stackable|folding|rolling"),
    Kind("filing cabinet|file cabinet", "storage furniture|cabinet", "14|30", "office",
         WOOD + "|steel", "lockable|rolling"),
    Kind("floor lamp|standing lamp|torchiere", "lamp|lighting", "50|72",
         "living room|bedroom|office", METAL + "|oak|rattan", "dimmable|led|adjustable|usb"),
    Kind("table lamp|bedside lamp", "lamp|lighting", "14|30", "bedroom|living room|office",
         "ceramic|glass|brass|walnut|marble", "dimmable|led|usb"),
    Kind("chandelier|candelabra", "ceiling light|hanging light|lighting|light fixture", "18|48",
         "dining room|living room|entryway", METAL + "|glass", "dimmable|led|adjustable"),
    Kind("pendant light|pendant lamp", "ceiling light|hanging light|lighting|light fixture",
         "8|24", "kitchen|dining room|outdoor", METAL + "|glass|rattan",
         "dimmable|led|adjustable|round"),
    Kind("wall sconce|wall lamp|wall light", "lamp|lighting|light fixture", "5|16",
         "bathroom|bedroom|entryway|outdoor", METAL + "|glass", "dimmable|led|swivel"),
    Kind("area rug|carpet", "rug|floor covering", "48|120",
         "living room|bedroom|kids room|outdoor", "wool|jute|cotton|polyester|silk",
         "round|washable|shag|geometric|floral|handmade"),
    Kind("runner rug|hallway runner", "rug|floor covering", "60|144", "entryway|kitchen|bathroom",
         "wool|jute|cotton|polyester", "washable|geometric|floral|handmade"),
    Kind("curtain|drape|window panel", "window treatment", "50|108",
         "bedroom|living room|kids room", "linen|cotton|velvet|polyester|silk",
         "blackout|washable|geometric|floral"),
    Kind("throw pillow|accent pillow|scatter cushion", "pillow|cushion", "12|26",
         "living room|bedroom|outdoor", "linen|cotton|velvet|wool|boucle",
         "washable|geometric|floral|round|handmade"),
    Kind("duvet cover|comforter|quilt", "bedding", BED, "bedroom|kids room",
         "linen|cotton|silk|polyester", "washable|geometric|floral|tufted"),
    Kind("wall mirror|hanging mirror|looking glass", "mirror|wall decor", "18|48",
         "bathroom|entryway|bedroom|living room", METAL + "|oak|rattan", "round|led|arched"),
    Kind("full length mirror|floor mirror|standing mirror", "mirror", "58|76", "bedroom|entryway",
         METAL + "|oak|pine", "arched|led|rolling"),
    Kind("wall clock|timepiece", "clock|wall decor", "8|36", "kitchen|living room|office",
         METAL + "|oak|walnut", "round|led"),
    Kind("vase|urn", "home decor", "6|30", "living room|dining room|entryway",
         "ceramic|glass|marble|brass", "handmade|floral|geometric"),
    Kind("planter|plant pot|flower pot", "home decor", "6|30", "outdoor|living room|kitchen",
         "ceramic|concrete|teak|steel|rattan", "rolling|handmade|round"),
    Kind("kitchen island|kitchen cart", "kitchen furniture", "30|66", "kitchen",
         WOOD + "|steel|marble", "rolling|drawers|folding"),
    Kind("bar cart|serving cart|drinks trolley", "kitchen furniture", "18|40",
         "dining room|kitchen|outdoor", METAL + "|glass|walnut", "rolling|folding|round"),
    Kind("bathroom vanity|vanity cabinet|sink cabinet", "cabinet", "24|72", "bathroom",
         WOOD + "|marble", "drawers|led"),
    Kind("towel rack|towel bar|towel rail", "bath hardware", "12|36", "bathroom|kitchen",
         METAL + "|teak", "swivel|folding|stackable"),
]

# Each value with the words that state it; a word stands for this value only, unless WIDER has it.
VALUES = {
    "colour": """
        blue|cobalt, navy|midnight blue, teal|turquoise, green|emerald, sage|olive, grey|gray,
        charcoal|dark gray, white|snow, cream|ivory|off white, beige|tan|sand, brown|chocolate,
        espresso|dark brown, black|ebony|onyx, red|burgundy|crimson, pink|blush|rose,
        yellow|mustard, orange|rust|terracotta, purple|plum|lavender, gold|golden,
        silver|chrome|nickel""",
    "material": """
        velvet|velour, linen|flax, leather|top grain|cowhide,
        faux leather|vegan leather|leatherette, boucle|teddy fabric, polyester|microfiber,
        oak|oakwood, walnut|walnut wood, pine|knotty pine, teak|teakwood, acacia|acacia wood,
        steel|stainless steel, iron|wrought iron, brass|antique brass, aluminum|aluminium,
        marble|stone, glass|tempered glass, rattan|wicker|cane, wool|woolen, jute|sisal,
        cotton|percale, silk|satin, ceramic|porcelain|stoneware, concrete|cement""",
    "style": """
        modern|contemporary, mid century|midcentury|retro, farmhouse|country, rustic|cabin|lodge,
        industrial|warehouse, coastal|nautical|beach|seaside, bohemian|boho,
        scandinavian|nordic|scandi, traditional|classic|victorian, glam|glamorous|luxe""",
    "size": """
        twin|single, full|double|full size, queen|queen size, king|king size,
        small|compact|space saving|mini, large|oversized|big""",
    "room": """
        living room|lounge|family room|den, bedroom|guest room, dining room|breakfast nook,
        kitchen|pantry, office|home office|study, bathroom|bath|powder room,
        entryway|hallway|foyer, kids room|kids|nursery|playroom, outdoor|patio|garden|porch|deck""",
    "feature": """
        storage|hidden compartment, tufted|button back, swivel|rotating,
        folding|foldable|collapsible, rolling|wheels|casters, round|circular,
        adjustable|height adjustable, led|illuminated|light up, usb|charging station,
        dimmable|dimmer, stackable|nesting, lockable|locking, extendable|expandable,
        power|electric|motorized, drawers|drawer, lift top|pop up top, blackout|room darkening,
        washable|machine washable, shag|fluffy|plush, geometric|patterned, floral|botanical,
        arched|arch top, handmade|handcrafted|handwoven""",
}

# Words that accept several values (and not only the value that they name above).
WIDER = {
    "colour": {
        "blue": "blue|navy|teal", "green": "green|sage", "grey": "grey|charcoal",
        "gray": "grey|charcoal", "brown": "brown|espresso", "white": "white|cream",
        "neutral": "white|cream|beige|grey", "dark": "black|charcoal|navy|espresso",
        "metallic": "gold|silver", "pastel": "pink|sage|cream",
    },
    "material": {
        "wood": WOOD, "wooden": WOOD, "hardwood": "oak|walnut|teak|acacia", "metal": METAL,
        "upholstered": SOFT, "fabric": "velvet|linen|boucle|polyester|cotton|wool|silk",
        "woven": "rattan|jute|wool|cotton",
    },
    "style": {
        "vintage": "mid century|traditional", "minimalist": "modern|scandinavian",
        "cottage": "farmhouse|coastal",
    },
    "feature": {
        "storage": "storage|drawers|lift top", "printed": "geometric|floral",
        "rechargeable": "usb",
    },
}

SERIES = [
    "alderly", "ashwick", "barlowe", "bexley", "brantley", "brisbee", "calloway", "cardiff",
    "carnaby", "chadwyck", "corbett", "cresswell", "dalton", "dunmore", "eastlyn", "ellery",
    "emberly", "fairbourne", "farrow", "fenwick", "galloway", "garrick", "greyson", "hadleigh",
    "halston", "harwell", "hollis", "huxley", "ingram", "jarvis", "kelham", "kendrick", "kingsley",
    "lambert", "langford", "larkin", "linden", "lockhart", "marlowe", "merritt", "milbank",
    "norwell", "oakhurst", "orlen", "paxton", "pembroke", "penrose", "quincy", "radnor", "ramsey",
    "redfern", "rowley", "selwyn", "sheffield", "sinclair", "stanhope", "tamsin", "thornby",
    "tilden", "upton", "vance", "verity", "wakefield", "waverly", "westcott", "whitby", "wilder",
    "winslow", "yardley",
]

IGNORED_WORDS = {
    "a", "an", "and", "by", "for", "from", "high", "in", "inch", "inches", "long", "of", "on",
    "or", "style", "tall", "the", "to", "wide", "with",
}
# fmt: on


def words_of(dimension: str) -> dict[str, list[str]]:
    """Return the values of a dimension, each with the phrases that state it."""
    entries = (entry.strip().split("|") for entry in VALUES[dimension].split(","))
    return {phrases[0]: phrases for phrases in entries}
