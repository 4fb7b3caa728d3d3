"""Tables of classes of segmentation sets."""

from __future__ import annotations

from mcjepa.data_prep.corpora.items import VOID

VOC_NAMES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
VOC_CLASSES = tuple(VOC_NAMES.split(","))

CITYSCAPES_LABELS = {
    0: ("unlabeled", VOID),
    1: ("ego vehicle", VOID),
    2: ("rectification border", VOID),
    3: ("out of roi", VOID),
    4: ("static", VOID),
    5: ("dynamic", VOID),
    6: ("ground", VOID),
    7: ("road", 0),
    8: ("sidewalk", 1),
    9: ("parking", VOID),
    10: ("rail track", VOID),
    11: ("building", 2),
    12: ("wall", 3),
    13: ("fence", 4),
    14: ("guard rail", VOID),
    15: ("bridge", VOID),
    16: ("tunnel", VOID),
    17: ("pole", 5),
    18: ("polegroup", VOID),
    19: ("traffic light", 6),
    20: ("traffic sign", 7),
    21: ("vegetation", 8),
    22: ("terrain", 9),
    23: ("sky", 10),
    24: ("person", 11),
    25: ("rider", 12),
    26: ("car", 13),
    27: ("truck", 14),
    28: ("bus", 15),
    29: ("caravan", VOID),
    30: ("trailer", VOID),
    31: ("train", 16),
    32: ("motorcycle", 17),
    33: ("bicycle", 18),
}
"""Label id to (name, train id), by the authors' cityscapesScripts."""
CITYSCAPES_CLASSES = tuple(name for name, train_id in CITYSCAPES_LABELS.values() if train_id != VOID)

COCO_STUFF_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Label values of things that were never annotated: street sign, hat, shoe, eye glasses, plate, mirror, window,
desk, door, blender, hair brush."""
COCO_STUFF_NAMES = (
    # 80 things
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush,"
    # 91 kinds of stuff
    "banner,blanket,branch,bridge,building-other,bush,cabinet,cage,cardboard,carpet,ceiling-other,ceiling-tile,"
    "cloth,clothes,clouds,counter,cupboard,curtain,desk-stuff,dirt,door-stuff,fence,floor-marble,floor-other,"
    "floor-stone,floor-tile,floor-wood,flower,fog,food-other,fruit,furniture-other,grass,gravel,ground-other,"
    "hill,house,leaves,light,mat,metal,mirror-stuff,moss,mountain,mud,napkin,net,paper,pavement,pillow,"
    "plant-other,plastic,platform,playingfield,railing,railroad,river,road,rock,roof,rug,salad,sand,sea,shelf,"
    "sky-other,skyscraper,snow,solid-other,stairs,stone,straw,structural-other,table,tent,textile-other,towel,"
    "tree,vegetable,wall-brick,wall-concrete,wall-other,wall-panel,wall-stone,wall-tile,wall-wood,water-other,"
    "waterdrops,window-blind,window-other,wood"
)
COCO_STUFF_CLASSES = tuple(COCO_STUFF_NAMES.split(","))
"""The 171 classes in the order of their label values."""
